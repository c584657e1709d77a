"""Copying a data file with the ranges of some tensors written anew, from start to end.

    base.data  [ W1 | b1 | W2 | ... ]   ->   [ W1' | b1 | W2' | ... ]     same size, same offsets

The graph keeps its entries of external data. A file is read and written in pieces of a few
megabytes, in order, so that the writer can hash what passes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from onnx import ModelProto, TensorProto

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import InputMissingError, PackError, Where
from lora_quant.graph.files.element_types import DTYPES
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.walk import iter_tensors

_PIECE = 2 << 20

# The new bytes of a tensor in pieces, None to keep what is there.
NewBytes = Callable[[], Iterable[bytes] | None]


class Sink(Protocol):
    """What a file is written to."""

    def write(self, data: bytes) -> int:
        """Append bytes."""


def rewrite(data: DataFile, tensors: Iterable[tuple[TensorProto, NewBytes]], sink: Sink) -> None:
    """Write `data` to `sink`, with new bytes for those of `tensors` that lie in it.

    Raises InputMissingError if the file cannot be read, PackError if it changes while it is.
    """
    changes = [
        (_range(tensor), new) for tensor, new in tensors if _location(tensor) == data.location
    ]
    changes.sort(key=lambda change: change[0])
    with _opened(data.path) as source:
        before = _state(source)
        position = 0
        for (start, end), new in changes:
            for piece in _pieces(source, data.path, position, start):
                sink.write(piece)
            for piece in new() or _pieces(source, data.path, start, end):
                sink.write(piece)
            position = end
        for piece in _pieces(source, data.path, position, data.size):
            sink.write(piece)
        if before != _state(source):
            raise PackError(
                "the weights changed while they were read",
                where=Where(file=data.path),
                hint="build again when nothing writes to this file",
            )


def overlapping(proto: ModelProto) -> dict[str, str]:
    """Tensors whose bytes in a data file are another tensor's as well -> the name of the other."""
    stored = [t for t in iter_tensors(proto) if t.data_location == TensorProto.EXTERNAL]
    found: dict[str, str] = {}
    farthest: tuple[str, int, str] = ("", 0, "")
    for location, (start, end), name in sorted((_location(t), _range(t), t.name) for t in stored):
        if location == farthest[0] and start < min(end, farthest[1]):
            found.setdefault(name, farthest[2])
            found.setdefault(farthest[2], name)
        if location != farthest[0] or end > farthest[1]:
            farthest = (location, end, name)
    return found


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _location(tensor: TensorProto) -> str:
    return str(PurePosixPath(_entries(tensor).get("location", "")))


def _range(tensor: TensorProto) -> tuple[int, int]:
    entries = _entries(tensor)
    start = int(entries.get("offset", "0"))
    dtype = DTYPES.get(tensor.data_type)
    size = math.prod(tensor.dims) * (dtype.itemsize if dtype is not None else 0)
    return start, start + int(entries.get("length", size))


def _opened(path: Path) -> BinaryIO:
    try:
        return BufferedReader(open_regular(path))
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _pieces(source: BinaryIO, path: Path, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        try:
            source.seek(start)
            piece = source.read(min(_PIECE, end - start))
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        if not piece:
            raise _unreadable(path, f"it ended {end - start} bytes too early")
        start += len(piece)
        yield piece


def _state(source: BinaryIO) -> tuple[int, int]:
    status = os.fstat(source.fileno())
    return status.st_size, status.st_mtime_ns


def _unreadable(path: Path, reason: str) -> InputMissingError:
    return InputMissingError(f"the file cannot be read: {reason}", where=Where(file=path))
