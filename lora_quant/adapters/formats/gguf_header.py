"""The header of a GGUF file: typed fields, then one record per tensor. Every size is bounded.

    "GGUF" version:u32 tensors:u64 fields:u64
    field:  key:text type:u32 value            text: length:u64 bytes
    tensor: name:text axes:u32 size:u64* type:u32 offset:u64
    padding, then the tensors' bytes; offsets count from there

Layout as in ggml's gguf.md, versions 2 and 3, little-endian. Sizes are stored innermost first, so
the shape is their reverse.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, cut

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_MAX_HEADER_BYTES = 100_000_000
_MAX_TEXT_BYTES = 1_000_000
_MAX_RECORDS = 200_000
_MAX_AXES = 4
_SMALLEST_FIELD = 13
_SMALLEST_TENSOR = 24
_COPY_AGAIN = "the file is cut short or damaged; copy or download it again"

_TEXT, _ARRAY = 8, 9
_NUMBERS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_FLOATS: Mapping[int, tuple[str, int]] = {
    0: ("F32", 4),
    1: ("F16", 2),
    28: ("F64", 8),
    30: ("BF16", 2),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Items:
    """An array among the fields: its length; the values are not kept."""

    count: int


@dataclass(frozen=True, eq=False)
class GgufHeader:
    """Fields by key (numbers, texts, Items) and the place of every tensor, in file order."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def read_header(file: BinaryIO, size: int, path: Path) -> GgufHeader:
    """Parse and check the header of a file of `size` bytes.

    Raises AdapterError for damage, UnsupportedAdapterError for another version, byte order or a
    quantized tensor; nothing else, whatever the bytes are.
    """
    reader = _Reader(file, min(size, _MAX_HEADER_BYTES), path)
    if reader.take(4) != MAGIC:
        reader.fail("the file does not begin with GGUF")
    version = reader.number(_U32)
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in _VERSIONS
        raise UnsupportedAdapterError(
            f"the file is GGUF {'in big-endian order' if swapped else f'version {version}'}, "
            "expected version 2 or 3 in little-endian order",
            where=Where(file=path),
            hint="convert the adapter again with llama.cpp's convert_lora_to_gguf.py",
        )
    tensor_count = reader.count(_SMALLEST_TENSOR)
    field_count = reader.count(_SMALLEST_FIELD)
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = reader.text()
        if key in fields:
            reader.fail(f"the field {key!r} appears twice")
        fields[key] = reader.value(reader.number(_U32), depth=0)
    records: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = reader.text()
        if name in records:
            reader.fail(f"the tensor {name!r} appears twice")
        axes = reader.number(_U32)
        if axes > _MAX_AXES:
            reader.fail(f"the tensor {name!r} has {axes} axes, expected at most {_MAX_AXES}")
        shape = tuple(reader.number(_U64) for _ in range(axes))[::-1]
        records[name] = (shape, reader.number(_U32), reader.number(_U64))
    start = _aligned(reader.position, fields, path)
    tensors = {name: _place(name, record, start, size, path) for name, record in records.items()}
    return GgufHeader(MappingProxyType(fields), MappingProxyType(tensors))


def _aligned(position: int, fields: Mapping[str, Any], path: Path) -> int:
    alignment = fields.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise AdapterError(
            f"{_ALIGNMENT} is {alignment!r}, expected a power of two",
            where=Where(file=path, field=_ALIGNMENT),
            hint=_COPY_AGAIN,
        )
    return -(-position // alignment) * alignment


def _place(
    name: str, record: tuple[tuple[int, ...], int, int], start: int, size: int, path: Path
) -> TensorInfo:
    shape, kind, offset = record
    where = Where(file=path, tensor=name)
    if kind not in _FLOATS:
        raise UnsupportedAdapterError(
            f"the tensor is of ggml type {kind}, which is quantized or no float; expected F32, F16 "
            "or BF16",
            where=where,
            hint="convert the adapter again with --outtype f32, f16 or bf16",
        )
    dtype, item = _FLOATS[kind]
    length = math.prod(shape) * item
    if start + offset + length > size:
        raise AdapterError(
            f"the tensor of shape {list(shape)} ends at byte {start + offset + length}, but the "
            f"file has {size}",
            where=where,
            hint=_COPY_AGAIN,
        )
    # An axis of 0 makes a tensor empty, and may not hide what no array could hold beside it.
    if math.prod(axis or 1 for axis in shape) * item > sys.maxsize:
        raise AdapterError(
            f"the tensor has shape {list(shape)}, which is larger than memory can address",
            where=where,
            hint=_COPY_AGAIN,
        )
    return TensorInfo(dtype, shape, start + offset, length)


class _Reader:
    """Takes values one after another and never beyond `end`."""

    def __init__(self, file: BinaryIO, end: int, path: Path) -> None:
        self._file = file
        self._end = end
        self._path = path
        self.position = 0

    def take(self, size: int) -> bytes:
        data = self._file.read(size) if size <= self._end - self.position else b""
        if len(data) != size:
            self.fail(f"the file ends within its header: at byte {self.position}, {size} more")
        self.position += size
        return data

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def count(self, smallest: int) -> int:
        """A number of records of at least `smallest` bytes each, which must fit the file."""
        count: int = self.number(_U64)
        most = min(_MAX_RECORDS, (self._end - self.position) // smallest)
        if count > most:
            self.fail(f"the header claims {count} records, expected at most {most}")
        return count

    def text(self) -> str:
        size: int = self.number(_U64)
        if size > _MAX_TEXT_BYTES:
            self.fail(f"a text claims {size} bytes, expected at most {_MAX_TEXT_BYTES}")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a text is not UTF-8")

    def value(self, kind: int, depth: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY and depth < 2:
            return self._items(depth)
        if kind not in _NUMBERS:
            self.fail(f"a field is of type {kind}, which is not known")
        return self.number(_NUMBERS[kind])

    def _items(self, depth: int) -> Items:
        kind: int = self.number(_U32)
        count: int = self.number(_U64)
        if kind in _NUMBERS:
            self._skip(count * _NUMBERS[kind].size)
            return Items(count)
        # a text takes 8 bytes and an array 12, so that the loop is bounded by the file
        if count > (self._end - self.position) // 8:
            self.fail(f"an array claims {count} values, which the file has no room for")
        for _ in range(count):
            self.value(kind, depth + 1)
        return Items(count)

    def _skip(self, size: int) -> None:
        if size > self._end - self.position:
            self.fail(f"the file ends within its header: at byte {self.position}, {size} more")
        self._file.seek(size, 1)
        self.position += size

    def fail(self, problem: str) -> NoReturn:
        raise AdapterError(
            f"{cut(problem, most=200)} (at byte {self.position})",
            where=Where(file=self._path),
            hint=_COPY_AGAIN,
        )
