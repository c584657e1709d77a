"""Which nodes compute W x, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.records import ConvGeometry, Form, LinearNode
from tests.builders import GraphBuilder
from tests.graph.helpers import opened

Build = Callable[[GraphBuilder], str]


def catalogued(build: Build, folder: Path, shape: tuple[int, ...]) -> LinearNode | NotLinear:
    graph = GraphBuilder()
    graph.input("x", shape)
    graph.output(build(graph), [f"d{n}" for n in range(len(shape))])
    model = graph.model(other_domains=["com.microsoft"])
    return opened(model, folder).catalog.nodes["/fc/Node"]


def op(op_type: str, *weight: int, domain: str = "", **attributes: Any) -> Build:
    def build(g: GraphBuilder) -> str:
        inputs = ["x", g.weight("fc.weight", *weight)]
        return g.node(op_type, inputs, "/fc/Node", domain=domain, **attributes)

    return build


def through(*steps: tuple[str, dict[str, Any]], op_type: str = "MatMul") -> Build:
    """The weight passes through other nodes on its way."""

    def build(g: GraphBuilder) -> str:
        w = g.weight("fc.weight", 3, 4)
        for number, (step, attributes) in enumerate(steps):
            inputs = [w]
            if step == "DequantizeLinear":
                w8 = g.constant("fc.weight_quantized", np.zeros((3, 4), np.int8))
                inputs = [w8, g.constant("scale", np.array(1.0, np.float32))]
            w = g.node(step, inputs, f"/step{number}", **attributes)
        return g.node(op_type, ["x", w], "/fc/Node")

    return build


@pytest.mark.parametrize(
    ("build", "features", "weight_is_in_out"),
    [
        (op("MatMul", 3, 4), (3, 4), True),
        (op("Gemm", 3, 4), (3, 4), True),
        (op("Gemm", 4, 3, transB=1), (3, 4), False),
        (op("MatMul", 3, 4, domain="ai.onnx"), (3, 4), True),
        (through(("Identity", {})), (3, 4), True),
        (through(("Transpose", {"perm": [1, 0]})), (4, 3), False),
        (through(("Transpose", {})), (4, 3), False),
        (through(("Transpose", {}), ("Identity", {}), ("Transpose", {})), (3, 4), True),
        (through(("Transpose", {}), op_type="Gemm"), (4, 3), False),
        (through(("Cast", {"to": TensorProto.FLOAT})), (3, 4), True),
        (through(*[("Identity", {})] * 16), (3, 4), True),
    ],
)
def test_products_with_a_matrix(
    tmp_path: Path, build: Build, features: tuple[int, int], weight_is_in_out: bool
) -> None:
    found = catalogued(build, tmp_path, (2, features[0]))
    assert isinstance(found, LinearNode)
    assert (found.in_features, found.out_features) == features
    assert (found.form, found.weight, found.x) == (Form.MATMUL, "fc.weight", "x")
    assert (found.weight_is_in_out, found.dtype) == (weight_is_in_out, "float32")
    assert (found.node, found.product) == ("/fc/Node", "/fc/Node_output_0")


def test_the_last_cast_decides_the_type(tmp_path: Path) -> None:
    build = through(("Cast", {"to": TensorProto.FLOAT16}), ("Cast", {"to": TensorProto.BFLOAT16}))
    found = catalogued(build, tmp_path, (2, 3))
    assert isinstance(found, LinearNode)
    assert found.dtype == "bfloat16"


def test_a_convolution(tmp_path: Path) -> None:
    build = op("Conv", 4, 3, 3, 5, strides=[1, 2], pads=[1, 2, 1, 2], kernel_shape=[3, 5])
    found = catalogued(build, tmp_path, (1, 3, 9, 9))
    assert isinstance(found, LinearNode)
    assert (found.form, found.in_features, found.out_features) == (Form.CONV, 3, 4)
    assert found.conv == ConvGeometry((3, 5), (1, 2), (1, 2, 1, 2))


def test_a_grouped_convolution_reads_all_channels(tmp_path: Path) -> None:
    found = catalogued(op("Conv", 6, 2, 3, 3, group=3), tmp_path, (1, 6, 9, 9))
    assert isinstance(found, LinearNode)
    assert (found.in_features, found.out_features) == (6, 6)
    assert found.conv == ConvGeometry((3, 3), (1, 1), (0, 0, 0, 0), groups=3)


def test_defaults_of_a_convolution(tmp_path: Path) -> None:
    found = catalogued(op("Conv", 4, 3, 3, auto_pad="SAME_LOWER"), tmp_path, (1, 3, 9))
    assert isinstance(found, LinearNode)
    assert found.conv == ConvGeometry((3,), (1,), (0, 0), "SAME_LOWER")


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (
            op("Conv", 4, 1, 3, 3, group=3),
            (1, 3, 9, 9),
            "its weight has shape [4, 1, 3, 3], expected [out, in, *kernel] with out a multiple "
            "of 3",
        ),
        (
            op("Conv", 4, 3, 3, 3, dilations=[2, 1]),
            (1, 3, 9, 9),
            "it is a dilated convolution (dilations [2, 1])",
        ),
        (
            op("ConvTranspose", 3, 4, 3, 3),
            (1, 3, 9, 9),
            "a transposed convolution has no LoRA branch form",
        ),
        (
            op("FusedMatMul", 3, 4, domain="com.microsoft"),
            (2, 3),
            "ONNX Runtime fused it with its neighbours (FusedMatMul)",
        ),
        (op("MatMulInteger", 3, 4), (2, 3), "its weight is quantized (MatMulInteger)"),
        (op("MatMul", 2, 3, 4), (2, 3), "its weight has shape [2, 3, 4], expected [in, out]"),
        (op("MatMul", 3), (2, 3), "its weight has shape [3], expected [in, out]"),
        (op("Gemm", 3), (2, 3), "its weight has shape [3], expected two axes"),
        (through(("Relu", {})), (2, 3), "its weight is computed by Relu, not constant"),
        (
            through(("Cast", {"to": TensorProto.INT32})),
            (2, 3),
            "its weight is of type int32, expected float32, float16 or bfloat16",
        ),
        (
            through(("Cast", {"to": 77})),
            (2, 3),
            "its weight is of type 77, expected float32, float16 or bfloat16",
        ),
        (
            lambda g: g.node("MatMul", ["x", "x"], "/fc/Node"),
            (3, 3),
            "its weight is a graph input",
        ),
        (
            lambda g: g.node("MatMul", [g.weight("w", 4, 2), "x"], "/fc/Node"),
            (2, 3),
            "its weight is the first input (W x); expected the second (x W)",
        ),
        (
            lambda g: g.node(
                "MatMul",
                ["x", g.node("Transpose", [g.weight("w", 1, 3, 4)], "/t", perm=[0, 2, 1])],
                "/fc/Node",
            ),
            (2, 3),
            "its weight passes through a Transpose with perm [0, 2, 1]",
        ),
        (
            through(*[("Identity", {})] * 17),
            (2, 3),
            "its weight passes through more than 16 nodes that only move or cast it",
        ),
    ],
)
def test_what_takes_no_branch(
    tmp_path: Path, build: Build, shape: tuple[int, ...], reason: str
) -> None:
    found = catalogued(build, tmp_path, shape)
    assert isinstance(found, NotLinear)
    assert found.reason == reason


def test_a_weight_may_come_from_a_constant_node(tmp_path: Path) -> None:
    def build(g: GraphBuilder) -> str:
        value = numpy_helper.from_array(np.ones((3, 4), np.float32))
        w = g.node("Constant", [], "/w", value=value)
        return g.node("MatMul", ["x", w], "/fc/Node")

    found = catalogued(build, tmp_path, (2, 3))
    assert isinstance(found, LinearNode)
    assert found.weight == "/w_output_0"


def test_other_domains_and_operators_are_not_looked_at(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 3))
    y = graph.node("MatMul", [x, graph.weight("w", 3, 3)], "/a/MatMul", domain="somebody")
    z = graph.node("Relu", [y], "/b/Relu")
    graph.output(z, (2, 3))
    base = opened(graph.model(other_domains=["somebody"]), tmp_path)
    assert not base.catalog.nodes


def test_two_nodes_of_one_name(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 3))
    for number in range(2):
        x = graph.node("MatMul", [x, graph.weight(f"w{number}", 3, 3)], "/fc", f"y{number}")
    graph.output(x, (2, 3))
    found = opened(graph.model(), tmp_path).catalog.nodes["/fc"]
    assert isinstance(found, NotLinear)
    assert found.reason == "several nodes bear this name"


def test_a_weight_of_strings_is_no_weight(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 1))
    graph.output(graph.node("MatMul", [x, "w"], "/fc/Node"), (2, 1))
    model = graph.model()
    model.graph.initializer.add(
        name="w", data_type=TensorProto.STRING, dims=[1, 1], string_data=[b"a"]
    )
    found = opened(model, tmp_path).catalog.nodes["/fc/Node"]
    assert isinstance(found, NotLinear)
    assert "of type string" in found.reason
