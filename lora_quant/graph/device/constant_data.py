"""The constants of a graph as codes, in a new data file, one tile in memory at a time.

    base.data  [ W1 float32 | b1 | table int64 | ... ]
    model.data [ W1 int8 | b1 int32 | table int64 | ... | zeros ]

Every constant that is quantized, and all that lay in data files of the base, has a place in the new
one. What use cases replace is zero until then: all of it reads one block of zeros at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from lora_quant.errors import Where
from lora_quant.graph.device.constant_grids import ConstantGrid
from lora_quant.graph.files.element_types import DTYPES
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.rewritten_data import Sink
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.quantized.qdq_records import ExternalCodes

_ALIGNMENT = 64
_TILE_VALUES = 1 << 18

Pieces = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class _Segment:
    offset: int
    pieces: Pieces


class QuantizedData:
    """What the data file `location` is going to hold; `size` is its length in bytes so far."""

    def __init__(self, model: ModelFile, location: str) -> None:
        self.location = location
        self.size = 0
        self._model = model
        self._segments: list[_Segment] = []

    def constant(self, tensor: TensorProto, made: ConstantGrid) -> ExternalCodes:
        """A place for the codes of one constant; `tensor` stays as it is until they are written."""
        shape = tuple(tensor.dims)
        length = math.prod(shape) * np.dtype(made.grid.dtype).itemsize
        offset = self._add(length, lambda: _codes(self._model, tensor, made))
        return ExternalCodes(self.location, offset, shape)

    def zeros(self, length: int) -> int:
        """Room for `length` bytes of zeros; returns where it begins."""
        return self._add(length, lambda: iter((bytes(length),)))

    def take_over(self, proto: ModelProto) -> None:
        """A place for the initializers that lie in data files of the base, as they are."""
        for tensor in proto.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if (
                tensor.data_location != TensorProto.EXTERNAL
                or entries.get("location") == self.location
            ):
                continue
            stored = TensorProto()
            stored.CopyFrom(tensor)
            dtype = DTYPES.get(tensor.data_type)
            length = math.prod(tensor.dims) * (0 if dtype is None else dtype.itemsize)
            offset = self._add(length, _copier(self._model, stored))
            del tensor.external_data[:]
            for key, value in (
                ("location", self.location),
                ("offset", str(offset)),
                ("length", str(length)),
            ):
                tensor.external_data.add(key=key, value=value)

    def write(self, sink: Sink) -> None:
        """The whole file, from start to end.

        Raises GraphError for a tensor that cannot be read, InputMissingError if its file cannot.
        """
        position = 0
        for segment in self._segments:
            sink.write(bytes(segment.offset - position))
            position = segment.offset
            for piece in segment.pieces():
                sink.write(piece)
                position += len(piece)

    def _add(self, length: int, pieces: Pieces) -> int:
        offset = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        self._segments.append(_Segment(offset, pieces))
        self.size = offset + length
        return offset


def _copier(model: ModelFile, tensor: TensorProto) -> Pieces:
    def pieces() -> Iterator[bytes]:
        with stored_values(model, tensor, Where(file=model.path, tensor=tensor.name)) as read:
            for start, count in _tiles(math.prod(tensor.dims), 1):
                yield read(start, count).tobytes()

    return pieces


def _codes(model: ModelFile, tensor: TensorProto, made: ConstantGrid) -> Iterator[bytes]:
    """Codes round(x / scale) + zero point, clipped to what the grid allows, in storage order."""
    shape, grid = tuple(tensor.dims), made.grid
    inner = 1
    if grid.axis is not None:
        inner = math.prod(shape[grid.axis + 1 :])
    scale = grid.scale.astype(np.float64).reshape(-1)
    zero = grid.zero_point.astype(np.float64).reshape(-1)
    with stored_values(model, tensor, Where(file=model.path, tensor=tensor.name)) as read:
        for start, count in _tiles(math.prod(shape), inner):
            values = read(start, count).astype(np.float64)
            channel: NDArray[np.intp] | int = 0
            if grid.axis is not None:
                # Whole runs of `inner` values belong to one channel after the other.
                first = start // inner
                runs = np.arange(first, first + count // inner) % scale.size
                channel = np.repeat(runs, inner)
            steps = np.rint(values / scale[channel]) + zero[channel]
            yield np.clip(steps, made.lowest, made.highest).astype(grid.dtype).tobytes()


def _tiles(count: int, run: int) -> Iterator[tuple[int, int]]:
    """Start and length of pieces of whole runs, a few megabytes each."""
    step = max(_TILE_VALUES // run, 1) * run
    for start in range(0, count, step):
        yield start, min(step, count - start)
