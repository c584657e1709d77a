"""What linear nodes read and give, as the tensors that may carry a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant.graph.files.graph_facts import read_graph_facts
from lora_quant.graph.files.linear_facts import LinearFact
from tests.builders import GraphBuilder


def facts(graph: GraphBuilder, folder: Path) -> tuple[LinearFact, ...]:
    return read_graph_facts(graph.save(folder / "model.onnx")).linears


def test_a_grid_passes_through_what_only_moves_values(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 4))
    turned = graph.node("Transpose", [x], "/t", perm=[1, 0])
    same = graph.node("Identity", [turned], "/i")
    w = graph.weight("w", 2, 3)
    y = graph.node("MatMul", [same, graph.node("Cast", [w], "/c", to=1)], "/m")
    graph.output(graph.node("Reshape", [y, graph.constant("s", np.array([12]))], "/r"), (12,))
    (found,) = facts(graph, tmp_path)
    assert found == LinearFact(
        node="/m",
        op="MatMul",
        reads=(("/i_output_0", "/t_output_0", "x"), ("/c_output_0", "w")),
        gives=("/m_output_0", "/r_output_0"),
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_bias_and_relu_behind_a_product_are_one_step_with_it(side: str, tmp_path: Path) -> None:
    graph = GraphBuilder()
    y = graph.matmul("/m", graph.input("x", (2, 4)), in_features=4, out_features=3, weight="w")
    b = graph.weight("b", 3)
    total = graph.node("Add", [b, y] if side == "left" else [y, b], "/a")
    graph.output(graph.node("Relu", [total], "/relu"), (2, 3))
    (found,) = facts(graph, tmp_path)
    assert found.bias == "b"
    assert found.gives == ("/m_output_0", "/a_output_0", "/relu_output_0")


def test_a_result_with_two_readers_has_a_grid_of_its_own(tmp_path: Path) -> None:
    graph = GraphBuilder()
    y = graph.matmul("/m", graph.input("x", (2, 3)), in_features=3, out_features=3, weight="w")
    one = graph.node("Relu", [y], "/one")
    graph.output(graph.node("Add", [one, y], "/two"), (2, 3))
    (found,) = facts(graph, tmp_path)
    assert found.gives == ("/m_output_0",)


def test_a_sum_of_two_activations_is_no_bias(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 3))
    y = graph.matmul("/m", x, in_features=3, out_features=3, weight="w")
    graph.output(graph.node("Add", [y, x], "/a"), (2, 3))
    (found,) = facts(graph, tmp_path)
    assert (found.bias, found.gives) == (None, ("/m_output_0",))


def test_grids_that_the_graph_has_itself_are_left_out(tmp_path: Path) -> None:
    graph = GraphBuilder()
    scale = graph.constant("s", np.array(0.1, np.float32))
    zero = graph.constant("z", np.array(0, np.int8))
    x = graph.node("QuantizeLinear", [graph.input("x", (2, 3)), scale, zero], "/q")
    x = graph.node("DequantizeLinear", [x, scale, zero], "/dq")
    w = graph.constant("w", np.ones((3, 3), np.int8))
    w = graph.node("DequantizeLinear", [w, scale, zero], "/dqw")
    y = graph.node("MatMul", [x, w], "/m")
    y = graph.node("QuantizeLinear", [y, scale, zero], "/qy")
    graph.output(graph.node("DequantizeLinear", [y, scale, zero], "/dqy"), (2, 3))
    (found,) = facts(graph, tmp_path)
    assert (found.reads, found.gives) == (((), ()), ())


def test_a_long_chain_is_not_followed_to_its_end(tmp_path: Path) -> None:
    graph = GraphBuilder()
    y = graph.input("x", (2, 3))
    for index in range(40):
        y = graph.node("Identity", [y], f"/i{index}")
    graph.output(graph.matmul("/m", y, in_features=3, out_features=3), (2, 3))
    (found,) = facts(graph, tmp_path)
    assert len(found.reads[0]) == 17
