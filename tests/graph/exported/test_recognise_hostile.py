"""Graphs that no exporter writes: an answer or a refusal, never a traceback, and no long walks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from lora_quant.errors import GraphError, LoraQuantError
from lora_quant.graph.exported.recognise import recognise_branches
from tests.builders import GraphBuilder
from tests.graph.helpers import opened
from tests.timing import cpu_seconds

IN, RANK, OUT = 4, 1, 1


def start(shape: tuple[int, ...] = (2, IN)) -> tuple[GraphBuilder, str, str]:
    graph = GraphBuilder()
    x = graph.input("x", shape)
    return graph, x, graph.matmul("base", x, in_features=IN, out_features=OUT)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Transpose", [], {"perm": [0, 0]}),
        ("Transpose", [], {"perm": [5, 1]}),
        ("Reshape", ["none"], {}),
        ("Reshape", ["zeros"], {}),
        ("Reshape", ["ones"], {}),
        ("Reshape", ["x"], {}),
        ("Squeeze", ["far"], {}),
        ("Squeeze", ["ones"], {}),
        ("Squeeze", [], {}),
        ("Unsqueeze", ["far"], {}),
        ("Unsqueeze", ["x"], {}),
        ("Unsqueeze", [], {}),
        ("Unsqueeze", [], {"axes": [-9]}),
    ],
)
@pytest.mark.parametrize("place", ["x", "a", "l", "h", "scale"])
@pytest.mark.parametrize("shape", [(2, IN), (IN,), ()])
def test_senseless_layouts_get_an_answer(
    tmp_path: Path,
    op: str,
    inputs: list[str],
    attributes: dict[str, Any],
    place: str,
    shape: tuple[int, ...],
) -> None:
    graph, x, h = start(shape)
    graph.constant("none", np.array([], np.int64))
    graph.constant("zeros", np.array([0, 0, 0, 0], np.int64))
    graph.constant("ones", np.array([1, 1], np.int64))
    graph.constant("far", np.array([7, -8], np.int64))

    def relaid(tensor: str, here: str) -> str:
        if here != place:
            return tensor
        return graph.node(op, [tensor, *inputs], f"odd_{here}", **attributes)

    scale = relaid(graph.weight("s", 1), "scale")
    low = graph.matmul("first", relaid(x, "x"), in_features=IN, out_features=RANK)
    low = graph.node("Mul", [relaid(low, "a"), scale], "scaled")
    l_ = relaid(graph.matmul("second", low, in_features=RANK, out_features=OUT), "l")
    graph.output(graph.node("Add", [relaid(h, "h"), l_], "sum"), ("N", OUT))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert len(found.points) + len(found.near) <= 1


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("Mul", ["low"], ["m"]), "a Mul node has inputs"),
        (helper.make_node("Reshape", ["low"], ["m"]), "a Reshape node has inputs"),
        (helper.make_node("Squeeze", ["low"], ["m"], axes=1), "of another type than INTS"),
        (helper.make_node("Constant", [], ["m"], value_float="x"), "of another type than FLOAT"),
    ],
)
def test_damaged_nodes_are_refused_when_the_graph_is_opened(
    tmp_path: Path, node: NodeProto, reason: str
) -> None:
    graph, x, h = start()
    graph.matmul("first", x, in_features=IN, out_features=RANK, output="low")
    graph.nodes.append(node)
    l_ = graph.matmul("second", "m", in_features=RANK, out_features=OUT)
    graph.output(graph.node("Add", [h, l_], "sum"), ("N", OUT))
    with pytest.raises(GraphError, match=reason):
        recognise_branches(opened(graph.model(), tmp_path))


def test_a_damaged_scale_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    graph, x, h = start()
    sizes = graph.constant("sizes", np.array([2, IN], np.int64))
    low = graph.node("Reshape", [x, sizes], "rows")
    low = graph.matmul("first", low, in_features=IN, out_features=RANK)
    l_ = graph.matmul("second", low, in_features=RANK, out_features=OUT)
    graph.output(graph.node("Add", [h, l_], "sum"), ("N", OUT))
    model = graph.model()
    (damaged,) = (t for t in model.graph.initializer if t.name == "sizes")
    damaged.raw_data = damaged.raw_data[:3]
    with pytest.raises(LoraQuantError, match="expected 2 for its shape"):
        recognise_branches(opened(model, tmp_path))


def test_long_rows_of_nodes_that_change_nothing_take_linear_time(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        graph, x, h = start()
        y = graph.matmul("first", x, in_features=IN, out_features=OUT)
        for number in range(count):
            y = graph.node("Identity", [y], f"same{number}")
            y = graph.node("Add", [y, h], f"sum{number}")
        graph.output(y, ("N", OUT))
        base = opened(graph.model(), tmp_path)
        return min(cpu_seconds(lambda: recognise_branches(base)) for _ in range(3))

    small, large = seconds(500), seconds(2000)
    # Four times the nodes; a quadratic step would take sixteen times as long.
    assert large < 10 * small + 0.1


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("inputs", [1, 3])
def test_an_operator_of_a_vendor_is_not_onnxs_of_the_same_name(
    op: str, inputs: int, tmp_path: Path
) -> None:
    graph, x, h = start()
    low = graph.matmul("first", x, in_features=IN, out_features=RANK)
    given = [low] if inputs == 1 else [low, graph.weight("s", 1), graph.weight("t", 1)]
    low = graph.node(op, given, "vendors", domain="com.microsoft")
    l_ = graph.matmul("second", low, in_features=RANK, out_features=OUT)
    graph.output(graph.node("Add", [h, l_], "sum"), ("N", OUT))
    model = graph.model()
    model.opset_import.add(domain="com.microsoft", version=1)
    assert recognise_branches(opened(model, tmp_path)).points == ()
