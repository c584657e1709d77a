"""Tensors whose external data shares bytes, told from their offsets alone.

Equal starts are meant so: tied weights share a range, and the zeros of branches one block. A start
inside of another tensor's range is not: one of the two reads what belongs to the other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from onnx import TensorProto

from lora_quant.errors import Where
from lora_quant.graph.files.external_data import stored_size
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.walk import iter_tensors


@dataclass(frozen=True)
class Overlap:
    """`tensor` begins at byte `start`, within `other`, which ends before byte `other_end`."""

    location: str
    tensor: str
    start: int
    other: str
    other_end: int


def overlapping_data(model: ModelFile) -> tuple[Overlap, ...]:
    """Every tensor that begins within another one, by file and place; n log n in the tensors."""
    ranges: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for tensor in iter_tensors(model.proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        start = int(entries.get("offset", "0"))
        told = entries.get("length")
        size = int(told) if told else stored_size(tensor, Where(file=model.path)) or 0
        if size:
            location = str(PurePosixPath(entries["location"]))
            ranges[location].append((start, start + size, tensor.name))
    found: list[Overlap] = []
    for location in sorted(ranges):
        end, owner, last_start, last = 0, "", -1, (0, "")
        for start, stop, name in sorted(ranges[location]):
            if start != last_start:
                end, owner = max((end, owner), last, key=lambda one: one[0])
                last_start, last = start, (stop, name)
            elif stop > last[0]:
                last = (stop, name)
            if start < end:
                found.append(Overlap(location, name, start, owner, end))
    return tuple(found)


def data_in_graph(model: ModelFile) -> tuple[str, ...]:
    """The first tensor of each data file that is the graph file itself."""
    graph = model.path.resolve()
    own = {data.location for data in model.data_files if data.path.resolve() == graph}
    first: dict[str, str] = {}
    for tensor in iter_tensors(model.proto):
        if own and tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = str(PurePosixPath(entries["location"]))
            if location in own:
                first.setdefault(location, tensor.name)
    return tuple(first.values())
