"""Nodes of a quantized graph that values leave alike: told apart by what is around them, or not.

v -> w -> ...    one w reads the sum of two v, the other one v alone
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from lora_quant.errors import GraphError
from lora_quant.graph.twin.twin_map import TwinMap
from tests.builders import GraphBuilder
from tests.graph.test_twin import mapped, twice
from tests.graph.twins import quantized, stack


def _sums(*pairs: tuple[str, ...]) -> ModelProto:
    """For every pair, in this order: W (sum of V x of each name), which is an output."""
    graph = GraphBuilder()
    x = graph.input("x", ("n", 32))
    sizes: dict[str, Any] = {"in_features": 32, "out_features": 32}
    for weight in "vw":
        graph.weight(weight, 32, 32)
    for name, *below in pairs:
        parts = [graph.matmul(f"/{one}/MatMul", x, weight="v", **sizes) for one in below]
        total = graph.node("Sum", parts, f"/{name}/Sum")
        y = graph.matmul(f"/{name}/MatMul", total, weight="w", **sizes)
        graph.node("Relu", [y], f"/{name}/Relu")
    return graph.model()


def test_equal_weights_are_told_apart_by_how_many_nodes_are_before_them(tmp_path: Path) -> None:
    twin = _sums(("two", "p", "q"), ("one", "r"))
    found = mapped(_sums(("n0", "n1"), ("n2", "n3", "n4")), twin, tmp_path)
    assert (found.mapping["one"], found.mapping["two"]) == (["/n0/MatMul"], ["/n2/MatMul"])
    assert found.mapping["r"] == ["/n1/MatMul"]
    assert found.by_order == ("p", "q")


def test_equal_weights_are_told_apart_by_how_many_nodes_are_behind_them(tmp_path: Path) -> None:
    def fan(*pairs: tuple[str, ...]) -> ModelProto:
        """For every pair, in this order: V x, which a W of each further name reads."""
        graph = GraphBuilder()
        x = graph.input("x", ("n", 32))
        sizes: dict[str, Any] = {"in_features": 32, "out_features": 32}
        for weight in "vw":
            graph.weight(weight, 32, 32)
        for name, *above in pairs:
            y = graph.matmul(f"/{name}/MatMul", x, weight="v", **sizes)
            for one in above:
                graph.matmul(f"/{one}/MatMul", y, weight="w", **sizes)
        return graph.model()

    twin = fan(("two", "p", "q"), ("one", "r"))
    found = mapped(fan(("n0", "n1"), ("n2", "n3", "n4")), twin, tmp_path)
    assert (found.mapping["one"], found.mapping["two"]) == (["/n0/MatMul"], ["/n2/MatMul"])
    assert found.mapping["r"] == ["/n1/MatMul"]
    assert found.by_order == ("p", "q")


@pytest.mark.parametrize("told_by", ["input", "output"])
def test_equal_weights_are_told_apart_by_inputs_and_outputs_of_the_graph(
    told_by: str, tmp_path: Path
) -> None:
    def two(names: dict[str, str]) -> ModelProto:
        """Number of an input or output -> the node that it goes with, in this order."""
        graph = GraphBuilder()
        for number in ("0", "1"):
            graph.input(f"x{number}", ("n", 32))
        for number, name in names.items():
            x = f"x{number}" if told_by == "input" else "x0"
            y = graph.matmul(name, x, in_features=32, out_features=32, weight="w")
            if told_by == "output":
                y = graph.node("Identity", [y], f"out{number}")
                graph.output(y, ("n", 32))
        return graph.model()

    found = mapped(two({"1": "n0", "0": "n1"}), two({"0": "/a/MatMul", "1": "/b/MatMul"}), tmp_path)
    assert found == TwinMap({"a": ["n1"], "b": ["n0"]}, (), ())


def test_a_name_that_two_nodes_claim_tells_neither(tmp_path: Path) -> None:
    """/a/MatMul and /a/MatMul_Q4 are both a's by their names, so that the order decides."""
    found = mapped(twice("/a/MatMul_Q4", "/a/MatMul"), twice("/a/MatMul", "/b/MatMul"), tmp_path)
    assert found.mapping == {"a": ["/a/MatMul_Q4"], "b": ["/a/MatMul"]}
    assert found.by_order == ("a", "b")


def test_a_node_that_claims_two_float_nodes_is_told_by_neither(tmp_path: Path) -> None:
    """The node bears the name of one, and its output that of the other."""
    model = twice("/b/MatMul", "n1")
    for node in model.graph.node:
        if node.name == "/b/MatMul":
            node.output[0] = "/a/MatMul_output_0"
        node.input[:] = [
            "/a/MatMul_output_0" if name == "/b/MatMul_output_0" else name for name in node.input
        ]
    found = mapped(model, twice("/a/MatMul", "/b/MatMul"), tmp_path)
    assert found.mapping == {"a": ["/b/MatMul"], "b": ["n1"]}
    assert found.by_order == ("a", "b")


def test_a_weight_is_compared_as_the_type_that_it_is_cast_to(tmp_path: Path) -> None:
    """70000 is infinite in float16, and so is no longer the float graph's."""
    twin = stack(1)
    twin.weights["w.0.q"] = np.full((32, 32), 70000, np.float32)
    model = quantized(twin.model(), "float")
    mapped(model, twin.model(), tmp_path)
    node = next(n for n in model.graph.node if n.name == "/layers.0/q/MatMul")
    half = helper.make_node("Cast", [node.input[1]], ["half"], to=onnx.TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["half"], ["back"], to=onnx.TensorProto.FLOAT)
    node.input[1] = "back"
    for made in (back, half):
        model.graph.node.insert(0, made)
    with pytest.raises(GraphError, match="inf steps of the grid away"):
        mapped(model, twin.model(), tmp_path)


def test_a_weight_may_be_rounded_by_the_types_that_it_is_cast_to(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits of the values, of which the float graph has 24."""
    model, twin = stack(1).model(), stack(1)
    node = next(n for n in model.graph.node if n.name == "/layers.0/q/MatMul")
    there = helper.make_node("Cast", [node.input[1]], ["there"], to=onnx.TensorProto.BFLOAT16)
    back = helper.make_node("Cast", ["there"], ["back"], to=onnx.TensorProto.FLOAT)
    node.input[1] = "back"
    for made in (back, there):
        model.graph.node.insert(0, made)
    assert len(mapped(model, twin.model(), tmp_path).mapping) == 6
