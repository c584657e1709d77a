"""A compiled graph with its branches cut out: what it is without adapters, by construction.

    h, l  ->  Add  ->  y        becomes        h  ->  Identity  ->  y

Vectors go the same way. Q/DQ nodes stay where they are, so that grids are those of the compiled
graph. Done with onnx-graphsurgeon; it knows of the branches only what the manifest names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnx import ModelProto

from lora_quant.config.manifest_records import AttachPointRecord
from lora_quant.errors import VerificationError, Where


def without_branches(proto: ModelProto, path: Path, points: Iterable[AttachPointRecord]) -> bytes:
    """The graph, serialized; VerificationError if a branch is not where the manifest has it."""
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(proto)
    tensors = graph.tensors()
    for point in points:
        added = [vector.weight for vector in point.vectors]
        if point.tensors is not None:
            added.append(point.tensors.l)
        for name in added:
            _cut(tensors, name, path, point)
    graph.cleanup().toposort()
    return bytes(gs.export_onnx(graph).SerializeToString())


def _cut(tensors: dict[str, Any], name: str, path: Path, point: AttachPointRecord) -> None:
    """Let the one node that reads a tensor, or what it is quantized to, pass its other input on."""
    tensor = tensors.get(name)
    readers = [] if tensor is None else list(tensor.outputs)
    while len(readers) == 1 and readers[0].op in ("QuantizeLinear", "DequantizeLinear"):
        (tensor,) = readers[0].outputs
        readers = list(tensor.outputs)
    if len(readers) != 1 or readers[0].op not in ("Add", "Mul"):
        raise VerificationError(
            f"{name!r} is read by {len(readers)} nodes, expected one Add or Mul that joins the "
            "branch with the base",
            where=Where(file=path, tensor=name, node=point.node),
            hint="build the pack again",
        )
    node = readers[0]
    node.inputs = [one for one in node.inputs if one is not tensor]
    node.op = "Identity"
