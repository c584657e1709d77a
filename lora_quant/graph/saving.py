"""Writing a branched graph: its bytes, and the shared block of zeros that it may read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base import BaseGraph
from lora_quant.graph.model_file import serialize
from lora_quant.graph.weights import place_zeros

PROTOBUF_LIMIT = 2**31 - 1


def graph_bytes(base: BaseGraph, lora_weights: Iterable[str], zeros_location: str) -> bytes:
    """The bytes of the edited graph; zero weights that are external read `zeros_location`.

    Raises GraphError above protobuf's limit of 2 GiB.
    """
    proto = base.model.proto
    place_zeros(proto.graph, lora_weights, zeros_location)
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise GraphError(
            f"the graph with its branches would take {proto.ByteSize()} bytes, more than the 2 GiB "
            "that an ONNX file can hold",
            where=Where(file=base.path),
            hint="save the base graph with external data",
        )
    return serialize(proto)


def check_model_file(path: Path) -> None:
    """Run onnx.checker with shape inference on a file; external data is checked for existence.

    Raises GraphError with the checker's message.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise GraphError(
            f"the graph does not pass onnx.checker: {str(error).strip().splitlines()[0]}",
            where=Where(file=path),
        ) from error
