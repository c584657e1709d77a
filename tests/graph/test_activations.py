"""Which tensors are activations that can carry an encoding."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from lora_quant.graph.base.activations import float_activations
from tests.builders import GraphBuilder
from tests.graph.helpers import all_points, branch, opened


def test_float_tensors_and_those_of_unknown_type(tmp_path: Path) -> None:
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    x = graph.node("Gather", [graph.weight("table", 9, 4), ids], "/embed", "x")
    y = graph.matmul("/fc/MatMul", x, in_features=4, out_features=4, output="y")
    graph.node("Shape", [y], "/shape", "shape")
    graph.node("Cast", [ids], "/to_float", "as_float", to=TensorProto.FLOAT)
    graph.node("Cast", [y], "/to_int", "as_int", to=TensorProto.INT64)
    graph.node("Add", ["as_int", "as_int"], "/sum", graph.value("typed", ("N", 4), "int64"))
    graph.output(y, ("N", 4))
    base = opened(graph.model(), tmp_path)
    assert float_activations(base) == {"x", "y", "as_float"}
    branched = branch(base, all_points(base))
    (made,) = branched.branches
    assert branched.scale is not None
    added = {made.h, made.a, made.m, made.l, *branched.scale.scales, "lora_alpha"}
    assert float_activations(base) == {"x", "y", "as_float"} | added
