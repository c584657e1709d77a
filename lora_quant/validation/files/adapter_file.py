"""Reading an `.onnx_adapter` with the flatbuffers library, as a second reader beside the writer.

The library follows every offset that it is given. So each one is checked before: it stays in the
file, its length does too, and no two parts share a byte. What a file claims costs no memory.
The library sees memory of the file's size into which only those parts are read: a mapped file that
became shorter meanwhile would end the process.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table
from numpy.typing import NDArray

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import AdapterError, InputMissingError, LoraQuantError, Where
from lora_quant.validation.files.adapter_signs import MAGIC

MOST_PARAMETERS = 100_000
MOST_AXES = 32
MOST_NAME_BYTES = 4096

_FORMAT_VERSION = 1
_MOST_BYTES = 2**31 - 1
_CHUNK_BYTES = 1 << 20
_OFFSET_BYTES = 4
_HEADER_BYTES = _OFFSET_BYTES + len(MAGIC)
_HINT = "take the file from an undamaged copy, or build the pack again"

_DTYPES: dict[int, tuple[str, Any]] = {
    1: ("float32", np.float32),
    2: ("uint8", np.uint8),
    3: ("int8", np.int8),
    4: ("uint16", np.uint16),
    5: ("int16", np.int16),
    6: ("int32", np.int32),
    7: ("int64", np.int64),
    10: ("float16", np.float16),
    11: ("float64", np.float64),
    12: ("uint32", np.uint32),
    13: ("uint64", np.uint64),
    16: ("bfloat16", ml_dtypes.bfloat16),
    17: ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
    18: ("float8e4m3fnuz", ml_dtypes.float8_e4m3fnuz),
    19: ("float8e5m2", ml_dtypes.float8_e5m2),
    20: ("float8e5m2fnuz", ml_dtypes.float8_e5m2fnuz),
}
"""Number in the file -> dtype; what ONNX Runtime does not take as a parameter is not among them."""


@dataclass(frozen=True)
class AdapterParameter:
    """One tensor; its values are `size` bytes from `start` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    numpy_dtype: np.dtype[Any]


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file says of itself; `parameters` may hold a name twice."""

    path: Path
    adapter_version: int
    model_version: int
    parameters: tuple[AdapterParameter, ...]

    def chunks(self, parameter: AdapterParameter) -> Iterator[NDArray[Any]]:
        """The values of a parameter, flat, at most 1 MiB at a time.

        Raises AdapterError if the file became shorter meanwhile, InputMissingError if it is gone.
        """
        with _opened(self.path) as file:
            file.seek(parameter.start)
            for done in range(0, parameter.size, _CHUNK_BYTES):
                count = min(_CHUNK_BYTES, parameter.size - done)
                data = file.read(count)
                if len(data) != count:
                    raise _unsound(self.path, "it ends in the middle of values", parameter.name)
                yield np.frombuffer(data, parameter.numpy_dtype)


def read_adapter_file(path: Path) -> AdapterFile:
    """The versions and parameters of a file, without their values.

    Raises InputMissingError if it cannot be read, AdapterError if it is no sound adapter file:
    not of this format, truncated, or with parts that leave the file or overlap.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER_BYTES:
            raise _unsound(path, f"it has {size} bytes")
        if size > _MOST_BYTES:
            raise _unsound(path, f"it has {size:,} bytes, more than the format can address")
        with mmap.mmap(-1, size) as memory:
            return _Reader(path, file, memory).adapter()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        with open_regular(path) as file:
            yield file
    except LoraQuantError:
        raise  # some of them are OSErrors as well
    except FileNotFoundError as error:
        raise InputMissingError("the file does not exist", where=Where(file=path)) from error
    except OSError as error:
        raise InputMissingError(
            f"the file cannot be read: {error.strerror or error}", where=Where(file=path)
        ) from error


class _Reader:
    """Walks the tables once; every part that is read is claimed first."""

    def __init__(self, path: Path, file: FileIO, data: mmap.mmap) -> None:
        self._path = path
        self._file = file
        self._data = data
        self._size = len(data)
        self._claimed: list[tuple[int, int, str]] = []
        self._vtables: set[tuple[int, int]] = set()
        self._bytes = 0

    def adapter(self) -> AdapterFile:
        self._load(0, _HEADER_BYTES)
        magic = self._data[_OFFSET_BYTES:_HEADER_BYTES]
        if magic != MAGIC:
            raise self._unsound(f"it begins with {magic!r}, expected {MAGIC!r}")
        self._claim(0, _HEADER_BYTES, "the header")
        root = self._table(Table(self._data, 0).Indirect(0), "the root")
        version = self._int32(root, 0)
        if version != _FORMAT_VERSION:
            raise self._unsound(f"its format has the version {version}, expected {_FORMAT_VERSION}")
        parameters = tuple(self._parameters(root))
        self._refuse_overlaps()
        return AdapterFile(self._path, self._int32(root, 1), self._int32(root, 2), parameters)

    def _parameters(self, root: Table) -> Iterator[AdapterParameter]:
        vector = self._vector(root, 3, 4, "the list of parameters", most=MOST_PARAMETERS)
        if vector is None:
            return
        start, count = vector
        for index in range(count):
            at = root.Indirect(start + _OFFSET_BYTES * index)
            yield self._parameter(self._table(at, f"parameter {index}"), f"parameter {index}")

    def _parameter(self, table: Table, what: str) -> AdapterParameter:
        name = self._name(table, what)
        dims = self._vector(table, 1, 8, f"the shape of {name!r}", most=MOST_AXES)
        values = self._vector(table, 3, 1, f"the values of {name!r}", load=False)
        number = self._int32(table, 2)
        if number not in _DTYPES:
            raise self._unsound(f"the dtype has the number {number}, which no parameter has", name)
        if values is None:
            raise self._unsound("it has no values", name)
        shape: tuple[int, ...] = ()
        if dims is not None:
            shape = tuple(
                table.Get(number_types.Int64Flags, dims[0] + 8 * axis) for axis in range(dims[1])
            )
        dtype, numpy_dtype = _DTYPES[number]
        width = np.dtype(numpy_dtype).itemsize
        if min(shape, default=0) < 0 or math.prod(shape) * width != values[1]:
            raise self._unsound(
                f"{dtype} {list(shape)} does not take the {values[1]} bytes of its values", name
            )
        return AdapterParameter(
            name, dtype, shape, values[0], values[1], np.dtype(numpy_dtype).newbyteorder("<")
        )

    def _name(self, table: Table, what: str) -> str:
        found = self._vector(
            table, 0, 1, f"the name of {what}", most=MOST_NAME_BYTES, terminated=True
        )
        if found is None or not found[1]:
            raise self._unsound(f"{what} has no name")
        try:
            return bytes(table.String(table.Pos + self._field(table, 0))).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._unsound(f"the name of {what} is not UTF-8 text") from error

    def _table(self, at: int, what: str) -> Table:
        """A table at a place, with its vtable; all of it lies in the file."""
        self._within(at, 4, what, align=4)
        self._load(at, 4)
        table = Table(self._data, at)
        vtable = at - table.Get(number_types.SOffsetTFlags, at)
        self._within(vtable, 4, f"the vtable of {what}", align=2)
        self._load(vtable, 4)
        vtable_size = table.Get(number_types.VOffsetTFlags, vtable)
        table_size = table.Get(number_types.VOffsetTFlags, vtable + 2)
        self._within(vtable, vtable_size, f"the vtable of {what}", align=2)
        self._within(at, table_size, what, align=4)
        if vtable_size < 4 or vtable_size % 2 or table_size < 4:
            raise self._unsound(f"the vtable of {what} has sizes of {vtable_size}, {table_size}")
        if (vtable, vtable_size) not in self._vtables:  # tables of one layout share it
            self._vtables.add((vtable, vtable_size))
            self._claim(vtable, vtable_size, f"the vtable of {what}")
            self._load(vtable, vtable_size)
        self._claim(at, table_size, what)
        self._load(at, table_size)
        for place in range(vtable + 4, vtable + vtable_size, 2):
            field = table.Get(number_types.VOffsetTFlags, place)
            if field and not 4 <= field <= table_size - 4:
                raise self._unsound(f"a field of {what} lies outside of its table")
        return table

    def _field(self, table: Table, number: int) -> int:
        """Where a field lies in its table, 0 if the table has none."""
        return int(table.Offset(4 + 2 * number))

    def _int32(self, table: Table, number: int) -> int:
        field = self._field(table, number)
        return int(table.Get(number_types.Int32Flags, table.Pos + field)) if field else 0

    def _vector(
        self,
        table: Table,
        number: int,
        width: int,
        what: str,
        *,
        most: int = _MOST_BYTES,
        terminated: bool = False,
        load: bool = True,
    ) -> tuple[int, int] | None:
        """Where the elements of a vector begin, and how many there are; None if it is absent.

        They are in memory with `load`, which leaves out values: those can be any amount.
        """
        field = self._field(table, number)
        if not field:
            return None
        at = table.Indirect(table.Pos + field)
        self._within(at, 4, what, align=4)
        self._load(at, 4)
        start = table.Vector(field)
        count = table.VectorLen(field)
        if count > most:
            raise self._unsound(f"{what} has {count:,} entries, expected at most {most:,}")
        length = width * count + terminated
        self._within(start, length, what, align=width)
        self._claim(at, 4 + length, what)
        if load:
            self._load(start, length)
        if terminated and self._data[start + length - 1] != 0:
            raise self._unsound(f"{what} does not end with a zero byte")
        return int(start), int(count)

    def _within(self, start: int, length: int, what: str, *, align: int) -> None:
        if start < _HEADER_BYTES or start + length > self._size:
            raise self._unsound(
                f"{what} lies at [{start}, {start + length}), the file has {self._size} bytes"
            )
        if start % align:
            raise self._unsound(f"{what} lies at {start}, expected a multiple of {align}")

    def _load(self, start: int, length: int) -> None:
        """Read a part of the file into its place in memory."""
        self._file.seek(start)
        data = self._file.read(length)
        if len(data) != length:
            raise self._unsound(f"it ended at {start + len(data)} while it was read")
        self._data[start : start + length] = data

    def _claim(self, start: int, length: int, what: str) -> None:
        """Note a part. More bytes than the file has cannot be apart: this bounds the work."""
        self._claimed.append((start, start + length, what))
        self._bytes += length
        if self._bytes > self._size:
            self._refuse_overlaps()

    def _refuse_overlaps(self) -> None:
        end, owner = 0, ""
        for start, stop, what in sorted(self._claimed):
            if start < end:
                raise self._unsound(f"{owner} and {what} share bytes")
            end, owner = stop, what

    def _unsound(self, what: str, tensor: str | None = None) -> AdapterError:
        return _unsound(self._path, what, tensor)


def _unsound(path: Path, what: str, tensor: str | None = None) -> AdapterError:
    return AdapterError(
        f"this is no sound adapter file of ONNX Runtime: {what}",
        where=Where(file=path, tensor=tensor),
        hint=_HINT,
    )
