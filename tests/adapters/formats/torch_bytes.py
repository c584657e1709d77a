"""`torch.save` files written by hand: pickle opcodes and zip entries, so that each can be wrong."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage"}
STORAGES |= {"bfloat16": "BFloat16Storage", "int64": "LongStorage"}
MARK, STOP, REDUCE, TUPLE, EMPTY_DICT = b"(", b".", b"R", b"t", b"}"
PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """BININT, or LONG1 where that is too small."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def sizes(values: Sequence[int]) -> bytes:
    """A tuple of whole numbers."""
    return MARK + b"".join(map(number, values)) + TUPLE


def storage(kind: str, key: str, numel: int) -> bytes:
    """The persistent id of a storage."""
    fields = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel)
    return MARK + fields + TUPLE + b"Q"


def tensor(
    kind: str, key: str, numel: int, offset: int, shape: Sequence[int], stride: Sequence[int]
) -> bytes:
    """A call of _rebuild_tensor_v2."""
    hooks = name("collections", "OrderedDict") + b")" + REDUCE
    arguments = storage(kind, key, numel) + number(offset) + sizes(shape) + sizes(stride)
    call = MARK + arguments + b"\x89" + hooks + TUPLE + REDUCE
    return name("torch._utils", "_rebuild_tensor_v2") + call


def parameter(inner: bytes) -> bytes:
    """A call of _rebuild_parameter around a tensor."""
    hooks = name("collections", "OrderedDict") + b")" + REDUCE
    return name("torch._utils", "_rebuild_parameter") + MARK + inner + b"\x88" + hooks + b"tR"


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    """A whole pickle: an OrderedDict of these entries, with torch's `_metadata`."""
    items = b"".join(text(key) + value for key, value in entries.items())
    made = name("collections", "OrderedDict") + b")" + REDUCE + b"q\x00" + MARK + items + b"u"
    return PROTO + made + EMPTY_DICT + text("_metadata") + EMPTY_DICT + b"sb" + STOP


def pickled(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The pickle of contiguous arrays, the n-th in storage n."""
    return state_dict(
        {
            key: tensor(
                STORAGES[array.dtype.name],
                str(number_),
                array.size,
                0,
                array.shape,
                [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)],
            )
            for number_, (key, array) in enumerate(arrays.items())
        }
    )


def write_zip(
    path: Path,
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """The archive of torch.save around a pickle and the bytes of its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Arrays as torch.save writes them."""
    values = {str(n): array.tobytes() for n, array in enumerate(arrays.values())}
    return write_zip(path, pickled(arrays), values)
