"""Bases with a branch that is taken or not: who else reads them, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.graph.exported.test_recognise_near import IN, OUT, RANK, TOKENS, Net, quantized, reason


def test_a_quantized_output_that_is_read_twice_keeps_its_branch(tmp_path: Path) -> None:
    """Codes of h, of which one DequantizeLinear gives h to the sum, and the other to an output."""
    net = Net(tmp_path)
    h = quantized(net, net.h, "h")
    again = ["h/q_output_0", "q_scale", "q_zero"]
    net.graph.output(net.graph.node("DequantizeLinear", again, "again"), (2, TOKENS, OUT))
    text = reason(net.done(h, net.second(net.first())))
    assert (
        text == "the quantized output 'h/q_output_0' of the base is read without the branch as well"
    )


def test_a_quantized_output_that_the_sum_alone_reads_may_have_a_branch(tmp_path: Path) -> None:
    net = Net(tmp_path)
    found = net.done(quantized(net, net.h, "h"), net.second(net.first()))
    assert [point.h for point in found.points] == ["h/dq_output_0"]


def test_a_branch_behind_one_that_is_left_out_is_left_out_with_it(tmp_path: Path) -> None:
    """The first of a chain of three is read elsewhere, which shows only when all are known."""
    net = Net(tmp_path)
    low = net.first("", "a0")
    net.graph.output(low, (2, TOKENS, RANK))
    h = net.h
    for number, rows in enumerate((low, net.first("", "a1"), net.first("", "a2"))):
        h = net.graph.node("Add", [h, net.second(rows, f"b{number}")], f"sum{number}")
    net.graph.output(h, (2, TOKENS, OUT))
    found = net.opened()
    assert found.points == ()
    reasons = {near.node: near.reason for near in found.near}
    assert list(reasons) == ["sum0", "sum1", "sum2"]
    assert "belongs to more than the branch: the graph gives it as an output" in reasons["sum0"]
    behind = "it is added behind a branch that was not taken"
    assert (reasons["sum1"], reasons["sum2"]) == (behind, behind)


def test_rows_that_are_looked_up_are_no_branch_of_a_product(tmp_path: Path) -> None:
    net = Net(tmp_path)
    graph = net.graph
    ids = graph.input("ids", (2, TOKENS, IN), "int64")
    h = graph.matmul(
        "product", graph.node("Cast", [ids], "cast", to=1), in_features=IN, out_features=OUT
    )
    rows = graph.node("Gather", [graph.weight("table", IN, RANK), ids], "lookup")
    text = reason(net.done(h, net.second(rows)))
    assert text == "one of A and the base looks rows up, and the other does not"


def test_a_bias_that_a_gemm_multiplies_by_zero_is_none(tmp_path: Path) -> None:
    net = Net(tmp_path)
    graph = net.graph
    rows = graph.node("Reshape", [net.x, graph.constant("s1", np.array([-1, IN]))], "rows")
    read = [rows, graph.weight("A", IN, RANK), graph.weight("bias", RANK)]
    low = graph.node("Gemm", read, "first", beta=0.0)
    high = graph.node("MatMul", [low, graph.weight("B", RANK, OUT)], "second")
    back = graph.constant("s2", np.array([2, TOKENS, OUT]))
    found = net.done(net.h, graph.node("Reshape", [high, back], "back"))
    assert [len(point.branches) for point in found.points] == [1]
    assert found.near == ()


def test_a_branch_that_a_subgraph_reads_is_left_out(tmp_path: Path) -> None:
    """What an If takes from outside is no input of its node."""
    net = Net(tmp_path)
    low = net.first()
    value = helper.make_tensor_value_info("inside", TensorProto.FLOAT, [2, TOKENS, RANK])
    read = helper.make_graph([helper.make_node("Neg", [low], ["inside"])], "g", [], [value])
    flag = net.graph.input("flag", (), "bool")
    both = {"then_branch": read, "else_branch": read}
    net.graph.output(net.graph.node("If", [flag], "if", **both), (2, TOKENS, RANK))
    text = reason(net.done(net.h, net.second(low)))
    assert "belongs to more than the branch: a subgraph reads it" in text
