"""Inputs of a graph whose shapes another, static form of it has fixed."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from lora_quant.engines.onnxruntime import Arrays
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.feeds.inputs import graph_inputs


def with_fixed_sizes(proto: ModelProto, static: ModelProto) -> ModelProto:
    """What random inputs are made by, with the sizes that the inputs of `static` have.

    Nodes, and everything that has a name, a type and a shape; no weights.
    """
    fixed = ModelProto()
    graph = fixed.graph
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    sizes = {value.name: value.type.tensor_type.shape for value in static.graph.input}
    for value in graph.input:
        if value.name in sizes:
            value.type.tensor_type.shape.CopyFrom(sizes[value.name])
    return fixed


def check_sizes(inputs: Arrays, proto: ModelProto, source: Path) -> None:
    """Raise VerificationError unless every input has the sizes that the graph fixes."""
    for value in graph_inputs(proto):
        got = inputs[value.name].shape
        dims = value.type.tensor_type.shape.dim
        wanted = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        fits = len(got) == len(wanted) and all(
            size in (None, one) for size, one in zip(wanted, got, strict=True)
        )
        if not fits:
            shape = ["any" if size is None else size for size in wanted]
            raise VerificationError(
                f"input {value.name!r} has the shape {list(got)}, expected {shape}".replace(
                    "'any'", "any"
                ),
                where=Where(file=source, tensor=value.name),
                hint="the graph has fixed sizes there; without the target that fixes them others "
                "may do: verify the rest with --target",
            )
