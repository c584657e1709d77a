"""Why the graph is edited as protobuf: what a round trip through onnx-graphsurgeon loses.

A test that fails here says that graphsurgeon keeps more than it did: read the reasons in
docs/architecture.md again then.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper


def exported_model() -> ModelProto:
    """y = relu(x W) with what exporters add: module names in metadata, types, quantization."""
    node = helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul", doc_string="fc.py line 1")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc', 'linear']")
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])
    weight.metadata_props.add(key="pkg.onnxscript.optimizer.folded_from", value="['fc.weight']")
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["h"], ["y"], name="relu")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.zeros((4, 3), np.float32), "w")],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 3]), weight],
    )
    graph.quantization_annotation.add(tensor_name="h")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.metadata_props.add(key="exported_by", value="torch")
    return model


def kept(model: ModelProto) -> dict[str, int]:
    graph = model.graph
    return {
        "node metadata": sum(len(node.metadata_props) for node in graph.node),
        "node doc strings": sum(bool(node.doc_string) for node in graph.node),
        "value types": len(graph.value_info),
        "value metadata": sum(len(value.metadata_props) for value in graph.value_info),
        "quantization annotations": len(graph.quantization_annotation),
        "model metadata": len(model.metadata_props),
    }


@pytest.mark.filterwarnings("ignore")
def test_graphsurgeon_drops_metadata_and_value_types() -> None:
    model = exported_model()
    assert kept(model) == {
        "node metadata": 1,
        "node doc strings": 1,
        "value types": 2,
        "value metadata": 1,
        "quantization annotations": 1,
        "model metadata": 1,
    }
    round_trip = gs.export_onnx(gs.import_onnx(model))
    assert kept(round_trip) == {
        "node metadata": 0,
        "node doc strings": 0,
        "value types": 1,
        "value metadata": 0,
        "quantization annotations": 0,
        "model metadata": 0,
    }
