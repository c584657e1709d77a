"""Subgraphs and model-local functions are compared by what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError
from tests.builders import save
from tests.graph.exported.comparing import compare, refused, renamed


def loop(path: Path, *, prefix: str = "", factor: float = 2.0, reads: str = "x") -> Path:
    """x and z -> If(flag): `reads` * factor, else z; names inside begin with `prefix`."""

    def body(name: str, read: str, value: float) -> onnx.GraphProto:
        made = [
            helper.make_node(
                "Constant",
                [],
                [f"{prefix}c"],
                value=numpy_helper.from_array(np.array(value, np.float32)),
            ),
            helper.make_node("Mul", [read, f"{prefix}c"], [f"{prefix}{name}"], name=f"{prefix}n"),
        ]
        output = helper.make_tensor_value_info(f"{prefix}{name}", TensorProto.FLOAT, [2])
        return helper.make_graph(made, f"{prefix}g", [], [output])

    node = helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="/If",
        then_branch=body("then", reads, factor),
        else_branch=body("else", "z", 1.0),
    )
    graph = helper.make_graph(
        [node],
        "if",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def test_names_inside_of_subgraphs_do_not_matter(tmp_path: Path) -> None:
    base = loop(tmp_path / "base.onnx")
    assert renamed(compare(base, loop(tmp_path / "other.onnx", prefix="other_"))) == []


def test_another_value_inside_of_a_subgraph_is_refused(tmp_path: Path) -> None:
    error = refused(loop(tmp_path / "base.onnx"), loop(tmp_path / "other.onnx", factor=3.0))
    assert error.where.node == "/If"
    assert "another 'then_branch' than the base's" in error.message


def test_a_subgraph_that_reads_another_tensor_is_refused(tmp_path: Path) -> None:
    error = refused(loop(tmp_path / "base.onnx"), loop(tmp_path / "other.onnx", reads="z"))
    assert error.where.node == "/If"


def test_a_weight_that_only_a_subgraph_reads_is_compared_to_the_last_byte(tmp_path: Path) -> None:
    """128 KiB, told apart by three samples at first; the difference lies between them."""

    def reading(path: Path, value: float) -> Path:
        weight = np.zeros(1 << 15, np.float32)
        weight[5000] = value
        model = onnx.load(str(loop(path, reads="w")))
        model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        return save(model, path)

    base = reading(tmp_path / "base.onnx", 1.0)
    assert compare(base, reading(tmp_path / "same.onnx", 1.0)).tensors["w"] == "w"
    error = refused(base, reading(tmp_path / "other.onnx", 2.0))
    assert error.where.tensor == "w"
    assert "from element 5000 on: got 2.0, expected 1.0" in error.message


def test_a_subgraph_that_reads_what_is_not_there_is_damaged(tmp_path: Path) -> None:
    base = loop(tmp_path / "base.onnx")
    other = loop(tmp_path / "other.onnx", reads="nothing")
    with pytest.raises(GraphError, match="reads the tensor 'nothing'") as caught:
        compare(base, other)
    assert caught.value.where.node == "/If"


def function(path: Path, *, inner: str = "t", operator: str = "Relu") -> Path:
    """x -> a model-local function (Neg, then `operator`) -> y."""
    body = helper.make_function(
        "own",
        "Block",
        ["i"],
        ["o"],
        [
            helper.make_node("Neg", ["i"], [inner]),
            helper.make_node(operator, [inner], ["o"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], name="/Block", domain="own")],
        "calls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[body])
    return save(model, path)


def test_functions_are_compared_by_their_bodies(tmp_path: Path) -> None:
    base = function(tmp_path / "base.onnx")
    compare(base, function(tmp_path / "renamed.onnx", inner="u"))
    error = refused(base, function(tmp_path / "other.onnx", operator="Tanh"))
    assert error.where.node == "/Block"
    assert "with another body" in error.message


def test_functions_with_another_default_of_an_attribute_differ(tmp_path: Path) -> None:
    """The call leaves `slope` out, so that the function's own value counts."""

    def leaky(path: Path, slope: float) -> Path:
        inner = helper.make_node("LeakyRelu", ["i"], ["o"])
        inner.attribute.append(
            onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
        )
        model = onnx.load(str(function(path)))
        (body,) = model.functions
        del body.node[:]
        body.node.append(inner)
        body.attribute_proto.append(helper.make_attribute("slope", slope))
        model.ir_version = 9
        return save(model, path)

    base = leaky(tmp_path / "base.onnx", 0.25)
    compare(base, leaky(tmp_path / "same.onnx", 0.25))
    error = refused(base, leaky(tmp_path / "other.onnx", 0.5))
    assert error.where.node == "/Block"
    assert "with another body" in error.message
