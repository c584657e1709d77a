"""Types of tensors that no value_info tells follow from the schemas of the operators."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, helper

from lora_quant.graph.exported.comparison.value_types import element_types
from tests.graph.helpers import opened


def test_operators_of_every_domain_of_onnx_have_schemas(tmp_path: Path) -> None:
    """ArrayFeatureExtractor gives the type of its first input, Scaler always float."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], domain="ai.onnx"),
        helper.make_node("ArrayFeatureExtractor", ["x", "places"], ["some"], domain="ai.onnx.ml"),
        helper.make_node("Scaler", ["some"], ["out"], domain="ai.onnx.ml"),
    ]
    graph = helper.make_graph(
        nodes,
        "types",
        [
            helper.make_tensor_value_info("x", TensorProto.INT64, [4]),
            helper.make_tensor_value_info("places", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    types = element_types(opened(helper.make_model(graph, opset_imports=opsets), tmp_path))
    assert (types["same"], types["some"], types["out"]) == (
        TensorProto.INT64,
        TensorProto.INT64,
        TensorProto.FLOAT,
    )
