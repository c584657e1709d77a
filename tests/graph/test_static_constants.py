"""What depends on shapes and constants only is computed; weights stay what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lora_quant.errors import Where
from lora_quant.graph.device.static_constants import drop_identities, fold_constants
from lora_quant.graph.device.static_shapes import infer_shapes

WHERE = Where(file=Path("base.onnx"))
Array = NDArray[Any]
X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def model(nodes: Sequence[NodeProto], stored: Mapping[str, Array], y: Sequence[int]) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    infer_shapes(proto, WHERE)
    return proto


def run(proto: ModelProto) -> Array:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": X})[0]
    return result


def operators(proto: ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_a_reshape_by_a_computed_shape_becomes_one_by_a_constant() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    stored = {"first": np.array([0]), "rest": np.array([-1])}
    proto = model(nodes, stored, [2, 12])
    before = run(proto)
    fold_constants(proto, (), WHERE)
    assert operators(proto) == ["Reshape"]
    assert [t.name for t in proto.graph.initializer] == ["target"]
    np.testing.assert_array_equal(run(proto), before)


def test_part_of_a_shape_is_read_from_the_axes_that_it_asks_for() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["end"], start=1, end=2),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Div", ["count", "end"], ["eight"]),
        helper.make_node("Concat", ["end", "eight"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    proto = model(nodes, {}, [3, 8])
    fold_constants(proto, (), WHERE)
    assert numpy_helper.to_array(proto.graph.initializer[0]).tolist() == [3, 8]


def test_a_mask_of_constants_is_folded_and_a_weight_is_not() -> None:
    nodes = [
        helper.make_node("Constant", [], ["ones"], value=numpy_helper.from_array(np.ones((4, 4)))),
        helper.make_node("Trilu", ["ones"], ["mask64"]),
        helper.make_node("Cast", ["mask64"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["weight"], ["turned"]),
        helper.make_node("MatMul", ["x", "mask"], ["inner"]),
        helper.make_node("MatMul", ["inner", "turned"], ["y"]),
    ]
    weight = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    proto = model(nodes, {"weight": weight}, [2, 3, 5])
    before = run(proto)
    fold_constants(proto, ("weight",), WHERE)
    assert operators(proto) == ["Transpose", "MatMul", "MatMul"]
    np.testing.assert_array_equal(run(proto), before)


def test_casts_between_equal_floats_are_passed_over() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["same"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["again"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["again", "real"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {}, X.shape)
    before = run(proto)
    assert drop_identities(proto) == {"same": "x", "again": "x"}
    assert operators(proto) == ["Cast", "Cast", "Add", "Cast"]
    np.testing.assert_array_equal(run(proto), before)


def test_what_replaces_nan_is_passed_over_where_it_makes_no_output() -> None:
    nodes = [
        helper.make_node("IsNaN", ["x"], ["check"]),
        helper.make_node("Where", ["check", "zero", "x"], ["clean"]),
        helper.make_node("Relu", ["clean"], ["inner"]),
        helper.make_node("IsNaN", ["inner"], ["second"]),
        helper.make_node("Where", ["second", "zero", "inner"], ["y"]),
    ]
    proto = model(nodes, {"zero": np.zeros((), np.float32)}, X.shape)
    before = run(proto)
    assert drop_identities(proto) == {"clean": "x"}
    assert operators(proto) == ["Relu", "IsNaN", "Where"]
    np.testing.assert_array_equal(run(proto), before)
