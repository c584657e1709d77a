"""Operators in terms of others: the same numbers; and those that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.device.device_operators import refuse_fused_operators, replace_operators
from tests.sample import ROOT, SAMPLE


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


@pytest.mark.parametrize("form", ["genai_fp32", "genai_int4"])
def test_operators_that_an_engine_fused_are_refused_by_their_names(form: str) -> None:
    path = ROOT / "tests" / "fixtures" / "exports" / form / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    with pytest.raises(GraphError) as caught:
        refuse_fused_operators(model, Where(file=path))
    assert "GroupQueryAttention (2), SkipSimplifiedLayerNormalization (4)" in caught.value.message
    assert caught.value.where.file == path


def test_what_exporters_write_is_not_refused() -> None:
    model = onnx.load(str(SAMPLE / "model" / "model.onnx"), load_external_data=False)
    refuse_fused_operators(model, Where(file=Path("model.onnx")))
