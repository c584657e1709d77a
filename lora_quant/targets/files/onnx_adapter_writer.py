"""Writing ONNX Runtime's adapter file tensor by tensor, so that no use case is whole in memory.

An `.onnx_adapter` is a FlatBuffers file: a root table that names versions and parameters, one
table per parameter with its name, dims, dtype and bytes. All sizes follow from the records, so
every offset is known before the first value is:

    root, vector of tables, tables | names and dims | values, each at a multiple of 8

The same tensors give the same bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import PackDefectError, PackError, Where
from lora_quant.graph.records import TensorRecord
from lora_quant.targets.files.safetensors_writer import ByteSink

ADAPTER_SUFFIX = ".onnx_adapter"

_MAGIC = b"TORT"
_FORMAT_VERSION = 1
_DTYPES = {
    "float32": (1, 4),
    "uint8": (2, 1),
    "int8": (3, 1),
    "uint16": (4, 2),
    "int16": (5, 2),
    "int32": (6, 4),
    "int64": (7, 8),
    "float16": (10, 2),
    "bfloat16": (16, 2),
}
"""dtype -> its number in the file, bytes of one value."""

_MAX_BYTES = 2**31 - 1
"""FlatBuffers addresses a file with signed 32 bits."""
_MAX_VERSION = 2**31 - 1

# Both kinds of tables have four fields of 4 bytes: one vtable serves them all.
_FIELDS = 4
_TABLE_BYTES = 4 * (1 + _FIELDS)
_VTABLE = struct.pack(
    f"<{2 + _FIELDS}H", 4 + 2 * _FIELDS, _TABLE_BYTES, *(4 * (1 + i) for i in range(_FIELDS))
)
_VTABLE_AT = 4 + len(_MAGIC)
_ROOT_AT = _VTABLE_AT + len(_VTABLE)
_VECTOR_AT = _ROOT_AT + _TABLE_BYTES


@dataclass(frozen=True)
class _Place:
    """Where the parts of one parameter begin: each at its length, which 4 bytes tell."""

    name: int
    dims: int
    values: int
    size: int


def write_adapter(
    sink: ByteSink,
    parameters: Sequence[TensorRecord],
    values: Iterable[tuple[str, NDArray[np.generic]]],
    *,
    adapter_version: int,
    model_version: int,
) -> None:
    """Write the tables for `parameters`, then each tensor as it comes, in the same order.

    dtypes are spelt float32, float16, bfloat16, int8, uint8, int16, uint16, int32 and int64. A
    size of 0 is allowed, a shape without axes is not: ONNX Runtime does not load it. Both versions
    are stored and lie in [0, 2**31).

    Raises PackError if the file would not fit the format, before anything is written, and
    PackDefectError if a tensor is not the one that the records announced.
    """
    _check(parameters, adapter_version, model_version)
    places = _places(parameters)
    _check_size(parameters, places)
    versions = (adapter_version, model_version)
    position = 0
    for piece in _tables(parameters, places, versions):
        sink.write(piece)
        position += len(piece)
    arrays = iter(values)
    for record, place in zip(parameters, places, strict=True):
        array = _next(arrays, record)
        sink.write(bytes(place.values - position) + struct.pack("<I", place.size))
        # bfloat16 has no buffer of its own: it goes out as bytes.
        sink.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        position = place.values + 4 + place.size
    extra = next(arrays, None)
    if extra is not None:
        raise _defect("the adapter file got a tensor more than was announced", extra[0])
    sink.write(bytes(-position % 4))


def _places(parameters: Sequence[TensorRecord]) -> list[_Place]:
    """All names and dims first, so that a reader finds what a file holds in one place."""
    end = _VECTOR_AT + 4 + 4 * len(parameters) + _TABLE_BYTES * len(parameters)
    starts = []
    for record in parameters:
        name = end
        dims = _before_aligned(name + 4 + len(record.name.encode()) + 1)
        end = dims + 4 + 8 * len(record.shape)
        starts.append((name, dims))
    places = []
    for record, (name, dims) in zip(parameters, starts, strict=True):
        size = math.prod(record.shape) * _DTYPES[record.dtype][1]
        at = _before_aligned(end)
        end = at + 4 + size
        places.append(_Place(name, dims, at, size))
    return places


def _before_aligned(position: int) -> int:
    """The first place from here on whose content, behind 4 bytes of length, is at 8 bytes."""
    return position + (4 - position) % 8


def _tables(
    parameters: Sequence[TensorRecord], places: Sequence[_Place], versions: tuple[int, int]
) -> Iterator[bytes]:
    """Everything before the values. An offset counts from where it stands."""
    root_field = _ROOT_AT + 4 * _FIELDS
    yield struct.pack("<I", _ROOT_AT) + _MAGIC + _VTABLE
    yield struct.pack(
        "<iiiiI", _ROOT_AT - _VTABLE_AT, _FORMAT_VERSION, *versions, _VECTOR_AT - root_field
    )
    elements = _VECTOR_AT + 4
    tables = elements + 4 * len(parameters)
    yield struct.pack("<I", len(parameters))
    for index in range(len(parameters)):
        at = elements + 4 * index
        yield struct.pack("<I", tables + _TABLE_BYTES * index - at)
    for index, (record, place) in enumerate(zip(parameters, places, strict=True)):
        at = tables + _TABLE_BYTES * index
        yield struct.pack(
            "<iIIiI",
            at - _VTABLE_AT,
            place.name - (at + 4),
            place.dims - (at + 8),
            _DTYPES[record.dtype][0],
            place.values - (at + 16),
        )
    position = tables + _TABLE_BYTES * len(parameters)
    for record, place in zip(parameters, places, strict=True):
        name = record.name.encode()
        yield bytes(place.name - position) + struct.pack("<I", len(name)) + name
        yield bytes(place.dims - (place.name + 4 + len(name)))
        yield struct.pack(f"<I{len(record.shape)}q", len(record.shape), *record.shape)
        position = place.dims + 4 + 8 * len(record.shape)


def _check(parameters: Sequence[TensorRecord], adapter_version: int, model_version: int) -> None:
    for what, number in (("adapter", adapter_version), ("model", model_version)):
        if not 0 <= number <= _MAX_VERSION:
            raise _defect(
                f"the {what} version of an adapter file is {number}, expected 0 to {_MAX_VERSION}"
            )
    seen: set[str] = set()
    for record in parameters:
        if record.name in seen:
            raise _defect("an adapter file would hold a tensor twice", record.name)
        seen.add(record.name)
        if record.dtype not in _DTYPES:
            raise _defect(
                f"an adapter file cannot hold {record.dtype}, expected one of {', '.join(_DTYPES)}",
                record.name,
            )
        if not record.shape:
            raise _defect(
                "an adapter file cannot hold a tensor without axes, expected [1] for a scalar",
                record.name,
            )


def _check_size(parameters: Sequence[TensorRecord], places: Sequence[_Place]) -> None:
    end = places[-1].values + 4 + places[-1].size if places else 0
    if end <= _MAX_BYTES - 3:  # room for the padding at the end
        return
    largest, place = max(zip(parameters, places, strict=True), key=lambda pair: pair[1].size)
    raise PackError(
        f"the adapter file would be {end:,} bytes, of which {place.size:,} are its largest "
        f"tensor's; ONNX Runtime's format holds at most {_MAX_BYTES:,}",
        where=Where(tensor=largest.name),
        hint="store the weights in fewer bits (--lora-weights int8), use smaller ranks, or put the "
        "use case into the weights of the base (--merge)",
    )


def _next(
    arrays: Iterator[tuple[str, NDArray[np.generic]]], record: TensorRecord
) -> NDArray[np.generic]:
    name, array = next(arrays, (None, None))
    if array is None:
        raise _defect("the adapter file did not get a tensor that was announced", record.name)
    if name != record.name or array.shape != record.shape or array.dtype != record.dtype:
        raise _defect(
            f"the adapter file expected {record.name!r} {record.dtype} {list(record.shape)}, got "
            f"{name!r} {array.dtype} {list(array.shape)}",
            record.name,
        )
    return array


def _defect(message: str, tensor: str | None = None) -> PackDefectError:
    return PackDefectError(
        message,
        where=Where(tensor=tensor),
        hint="this is a defect of lora-quant or of a plugin: please report it with these lines",
    )
