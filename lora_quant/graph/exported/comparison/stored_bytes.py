"""The bytes of stored tensors, read in blocks, and whether two tensors have the same.

float_data [0.5]  ->  00 00 00 3f  <-  raw_data        however a file holds them, little-endian

A tensor in a data file is never read as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.files.element_types import DTYPES, type_name
from lora_quant.graph.files.external_data import stored_size

_BLOCK = 1 << 20
# Larger tensors are told apart by their first, middle and last bytes, before they are compared.
_WHOLE = 1 << 16
_SAMPLE = 1 << 12

Source: TypeAlias = "FileIO | BytesIO"
# Element type, shape and digest: equal for equal values.
ValueKey: TypeAlias = "tuple[int, tuple[int, ...], bytes]"


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor, and the graph file that it is of."""

    file: Path
    proto: TensorProto

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes; () for a scalar."""
        return tuple(self.proto.dims)

    @property
    def where(self) -> Where:
        """The place that an error about it names."""
        return Where(file=self.file, tensor=self.proto.name or None)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        place = self.place()
        return len(_inline_bytes(self.proto)) if place is None else place[2]

    def place(self) -> tuple[Path, int, int] | None:
        """Data file, offset and length in bytes; None for a tensor inside the graph file."""
        if self.proto.data_location != TensorProto.EXTERNAL:
            return None
        entries = {entry.key: entry.value for entry in self.proto.external_data}
        path = self.file.parent / PurePosixPath(entries["location"])
        size = stored_size(self.proto, self.where) or 0
        return path, int(entries.get("offset", "0")), int(entries.get("length", size))

    def value_key(self, *, whole: bool) -> ValueKey:
        """What tells its values: by all of its bytes if `whole`, else by samples of a large one."""
        digest = hashlib.blake2b(digest_size=16)
        with self.opened() as (data, start, size):
            digest.update(size.to_bytes(8, "little"))
            if whole or size <= _WHOLE:
                for block in self._blocks(data, start, size):
                    digest.update(block)
            else:
                for offset in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
                    for block in self._blocks(data, start + offset, _SAMPLE):
                        digest.update(block)
        return self.proto.data_type, self.shape, digest.digest()

    @contextmanager
    def opened(self) -> Iterator[tuple[Source, int, int]]:
        """A file with its bytes, where they start and how many they are."""
        place = self.place()
        if place is None:
            data = _inline_bytes(self.proto)
            wanted = stored_size(self.proto, self.where)
            if wanted is not None and len(data) != wanted:
                raise GraphError(
                    f"the tensor holds {len(data)} bytes, expected {wanted} for its type and shape "
                    f"{list(self.shape)}",
                    where=self.where,
                    hint="the graph is damaged; save it again from its source",
                )
            yield BytesIO(data), 0, len(data)
            return
        path, start, size = place
        try:
            file = FileIO(path)
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        with file:
            yield file, start, size

    def _blocks(self, data: Source, start: int, size: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(size, _BLOCK)))
        for offset in range(0, size, _BLOCK):
            block = buffer[: min(_BLOCK, size - offset)]
            self.read_into(data, start + offset, block)
            yield block

    def read_into(self, data: Source, start: int, block: memoryview) -> None:
        """Fill `block` from position `start`; InputMissingError if the file ends before."""
        try:
            data.seek(start)
            while block:
                done = data.readinto(block)
                if not done:
                    raise self._unreadable(f"it ended {len(block)} bytes too early")
                block = block[done:]
        except OSError as error:
            if isinstance(error, InputMissingError):
                raise
            raise self._unreadable(error.strerror or str(error)) from error

    def _unreadable(self, reason: str) -> InputMissingError:
        return InputMissingError(
            f"the values of the tensor cannot be read: {reason}",
            where=self.where,
            hint="the data file was there when the graph was opened: is it being written?",
        )


def is_same_place(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether both are the same bytes of one data file."""
    first, second = one.place(), other.place()
    if first is None or second is None or first[1:] != second[1:]:
        return False
    try:
        return first[0].samefile(second[0])
    except OSError:
        return False


def first_unequal(one: StoredTensor, other: StoredTensor) -> int | None:
    """The first byte that differs between tensors of one type and shape, None if none does."""
    with one.opened() as (left, begin, size), other.opened() as (right, start, length):
        if size != length:
            return min(size, length)
        buffers = (bytearray(min(size, _BLOCK)), bytearray(min(size, _BLOCK)))
        for offset in range(0, size, _BLOCK):
            count = min(_BLOCK, size - offset)
            if count < len(buffers[0]):
                del buffers[0][count:], buffers[1][count:]
            one.read_into(left, begin + offset, memoryview(buffers[0]))
            other.read_into(right, start + offset, memoryview(buffers[1]))
            if buffers[0] != buffers[1]:
                first, second = (np.frombuffer(b, np.uint8) for b in buffers)
                return offset + int(np.argmax(first != second))
    return None


def element_at(tensor: StoredTensor, byte: int) -> tuple[int, str]:
    """The number of the element that a byte belongs to, and its value in words."""
    dtype = DTYPES.get(tensor.proto.data_type)
    width = 1 if dtype is None else dtype.itemsize
    number = byte // width
    data = bytearray(width)
    with tensor.opened() as (source, start, _):
        tensor.read_into(source, start + number * width, memoryview(data))
    return number, f"0x{data.hex()}" if dtype is None else repr(
        np.frombuffer(data, dtype)[0].item()
    )


def described(tensor: StoredTensor) -> str:
    """Type and shape in words."""
    return f"{type_name(tensor.proto.data_type)} of shape {list(tensor.shape)}"


def _inline_bytes(tensor: TensorProto) -> bytes:
    """All bytes of a tensor inside the graph, as raw_data would hold them."""
    if tensor.HasField("raw_data"):
        raw: bytes = tensor.raw_data
        return raw
    if tensor.data_type == TensorProto.STRING:
        return b"".join(len(text).to_bytes(8, "little") + text for text in tensor.string_data)
    for field, stored in (
        (tensor.float_data, "<f4"),
        (tensor.double_data, "<f8"),
        (tensor.int64_data, "<i8"),
    ):
        if len(field):
            return np.array(field, stored).tobytes()
    if len(tensor.uint64_data):
        width = "<u4" if tensor.data_type == TensorProto.UINT32 else "<u8"
        return np.array(tensor.uint64_data, np.uint64).astype(width).tobytes()
    # One value takes an int32 whatever its type is; two of 4 bits share one.
    dtype = DTYPES.get(tensor.data_type)
    width = f"<i{1 if dtype is None else dtype.itemsize}"
    return np.array(tensor.int32_data, np.int32).astype(width).tobytes()
