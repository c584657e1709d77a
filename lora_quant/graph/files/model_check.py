"""A graph file held against onnx.checker, with what the checker does not know set aside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from lora_quant.errors import NOWHERE, GraphError, PackError, Where
from lora_quant.graph.files.model_file import ModelFile, default_opset, load_model, serialize
from lora_quant.graph.files.walk import iter_graphs, iter_tensors

# Operators that ONNX Runtime has in the default domain, and the opset that took them up.
_RUNTIME_BEFORE = {"LayerNormalization": 17, "SimplifiedLayerNormalization": math.inf}
# A domain that no schema is registered for.
_FOREIGN = "onnxruntime.default"


def check_model_file(path: Path, waiting: Mapping[str, str] | None = None) -> ModelFile:
    """Run onnx.checker with shape inference on a file; its external data is checked as on loading.

    `waiting` maps data locations of the graph to the names that the files have before they are
    published. Operators that ONNX Runtime alone has in the default domain
    (SimplifiedLayerNormalization in every graph of its GenAI builder) are passed over, as are those
    of other domains. Returns the graph as loaded; raises GraphError with the checker's message.
    """
    if not waiting:
        return _check(path)
    stand_in = stand_in_for(path)
    try:
        stand_in.write_bytes(_relocated(path.read_bytes(), waiting))
        return _check(stand_in)
    except OSError as error:
        raise PackError(
            f"the graph cannot be checked: {error.strerror}", where=Where(file=path)
        ) from error
    finally:
        stand_in.unlink(missing_ok=True)


def stand_in_for(path: Path) -> Path:
    """The copy that is checked in place of a graph whose data waits under other names."""
    return path.with_name(f"{path.name}.check")


def _relocated(data: bytes, locations: Mapping[str, str]) -> bytes:
    """The bytes of a graph whose external data has other names."""
    proto = onnx.load_model_from_string(data)
    for tensor in iter_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = locations.get(entry.value, entry.value)
    return serialize(proto, NOWHERE)


def _check(path: Path) -> ModelFile:
    model = load_model(path)
    checked: str | ModelProto = str(path)
    if _only_runtime_knows(model.proto):
        checked = _stand_in(load_model(path).proto)
    try:
        onnx.checker.check_model(checked, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        OSError,
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GraphError(
            f"the graph does not pass onnx.checker: {reason}", where=Where(file=path)
        ) from error
    return model


def _only_runtime_knows(proto: ModelProto) -> list[NodeProto]:
    opset = default_opset(proto)
    return [
        node
        for graph in iter_graphs(proto.graph)
        for node in graph.node
        if node.domain in ("", "ai.onnx") and opset < _RUNTIME_BEFORE.get(node.op_type, 0)
    ]


def _stand_in(proto: ModelProto) -> ModelProto:
    """What can be checked in memory of a graph with such nodes.

    They move to a domain that the checker does not look into; external initializers, which it
    would seek in the working directory, become inputs of the same type. The types that such a
    graph tells of its tensors were never checked (the GenAI builder's are wrong for some
    constants): inference makes its own.
    """
    del proto.graph.value_info[:]
    for node in _only_runtime_knows(proto):
        node.domain = _FOREIGN
    proto.opset_import.add(domain=_FOREIGN, version=1)
    stored = proto.graph.initializer
    inputs = {value.name for value in proto.graph.input}
    for position in reversed(range(len(stored))):
        tensor = stored[position]
        if tensor.data_location == TensorProto.EXTERNAL:
            if tensor.name not in inputs:
                proto.graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
            del stored[position]
    return proto
