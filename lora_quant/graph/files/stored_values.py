"""Reading ranges of a stored tensor: from its data file by position, or from the graph itself.

A tensor in a data file is never read as a whole, so that memory does not grow with its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.files.element_types import DTYPES, type_name
from lora_quant.graph.files.model_file import ModelFile

Array = NDArray[Any]
ReadRange = Callable[[int, int], Array]

_PACKED_BITS: Mapping[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
_SIXTEEN_BIT_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@contextmanager
def stored_values(model: ModelFile, tensor: TensorProto, where: Where) -> Iterator[ReadRange]:
    """Gives `read(start, count)`: that many elements from the one numbered `start`, row by row.

    Integers of 4 bits are read as int8 and uint8. Raises GraphError for a type that cannot be read
    and for a damaged tensor, InputMissingError if the data file cannot be read.
    """
    bits = _PACKED_BITS.get(tensor.data_type)
    if bits is not None:
        with _stored(model, tensor, np.dtype(np.uint8), where, bits) as read:
            is_signed = tensor.data_type == TensorProto.INT4
            yield lambda start, count: _read_packed(read, start, count, bits, is_signed)
        return
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise GraphError(
            f"values of type {type_name(tensor.data_type)} cannot be read, expected float32, "
            "float16 or bfloat16",
            where=where,
            hint="give the float graph that was quantized",
        )
    with _stored(model, tensor, dtype, where) as read:
        yield read


def unpacked(data: Array, bits: int) -> Array:
    """Bytes `[..., n]` -> the unsigned integers in them `[..., n * 8 / bits]`, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values: Array = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(*data.shape[:-1], -1)


def _read_packed(read: ReadRange, start: int, count: int, bits: int, is_signed: bool) -> Array:
    """Elements out of packed bytes."""
    each = 8 // bits
    first, last = start // each, -(-(start + count) // each)
    values = unpacked(read(first, last - first), bits)[start - first * each :][:count]
    if not is_signed:
        return values
    # Up to the sign bit and back: the upper half of the codes is negative.
    return (values << (8 - bits)).view(np.int8) >> (8 - bits)


@contextmanager
def _stored(
    model: ModelFile, tensor: TensorProto, dtype: np.dtype[Any], where: Where, bits: int = 0
) -> Iterator[ReadRange]:
    """Reads elements of `dtype`; with `bits`, the bytes that elements of so many bits lie in."""
    wanted = math.prod(tensor.dims)
    if bits:
        wanted = -(-wanted * bits // 8)
    if tensor.data_location != TensorProto.EXTERNAL:
        values = _inline_values(tensor, dtype)
        if values.size != wanted:
            raise GraphError(
                f"the tensor holds {values.size} values, expected {wanted} for its "
                f"shape {list(tensor.dims)}",
                where=where,
                hint="the graph is damaged; save it again from its source",
            )
        yield lambda start, count: values[start : start + count]
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(entries.get("offset", "0"))
    path = model.path.parent / PurePosixPath(entries["location"])
    place = Where(file=path, tensor=where.tensor, node=where.node, module=where.module)
    try:
        file = open_regular(path)
    except OSError as error:
        raise _unreadable(error, place) from error
    with file:
        yield lambda start, count: _read(file, offset, start, count, dtype, place)


def _inline_values(tensor: TensorProto, dtype: np.dtype[Any]) -> Array:
    """All values of a tensor inside the graph, flat; its bytes are little-endian by definition."""
    if tensor.HasField("raw_data"):
        data = tensor.raw_data
        whole = len(data) // dtype.itemsize
        return np.frombuffer(data, dtype, count=whole)
    if tensor.data_type == TensorProto.FLOAT:
        return np.array(tensor.float_data, dtype)
    if tensor.data_type == TensorProto.DOUBLE:
        return np.array(tensor.double_data, dtype)
    if tensor.data_type == TensorProto.INT64:
        return np.array(tensor.int64_data, dtype)
    narrow = np.array(tensor.int32_data, np.int32)
    if tensor.data_type in _SIXTEEN_BIT_FLOATS:
        return narrow.astype(np.uint16).view(dtype)
    return narrow.astype(dtype)


def _read(
    file: FileIO, offset: int, start: int, count: int, dtype: np.dtype[Any], where: Where
) -> Array:
    data = np.empty(count * dtype.itemsize, np.uint8)
    rest = data.data
    try:
        file.seek(offset + start * dtype.itemsize)
        while rest:
            done = file.readinto(rest)
            if not done:
                raise InputMissingError(
                    f"the data file ended {len(rest)} bytes too early while it was read",
                    where=where,
                    hint="build again when nothing writes to this file",
                )
            rest = rest[done:]
    except OSError as error:
        if isinstance(error, InputMissingError):
            raise
        raise _unreadable(error, where) from error
    return data.view(dtype)


def _unreadable(error: OSError, where: Where) -> InputMissingError:
    return InputMissingError(
        f"the data file cannot be read: {error.strerror or error}",
        where=where,
        hint="it was there when the graph was opened; check the file and its permissions",
    )
