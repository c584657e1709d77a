"""Operators in terms of others: the same numbers."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from lora_quant.graph.device.device_operators import replace_operators


def test_a_reciprocal_becomes_a_division() -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Reciprocal", ["x"], ["inner"], name="first"),
        helper.make_node("Reciprocal", ["inner"], ["y"], name="second"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    replace_operators(model)
    assert [(n.op_type, n.name) for n in model.graph.node] == [("Div", "first"), ("Div", "second")]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.array([0.5, 2.0, -4.0], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
