"""A `torch.save` file (zip) read without torch and without running its pickle.

    archive/data.pkl     names, shapes, and which storage holds which tensor
    archive/data/<key>   the bytes of one storage, stored as they are
    archive/byteorder    "little"

A tensor is read from its place in the file; nothing is unpacked. Compressed entries, which could
expand without bound, and files of torch before 1.6 (tar, bare pickle) are refused.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lora_quant.adapters.files.dtypes import NUMBER_DTYPES, NumberArray, expect_float
from lora_quant.adapters.files.opened import opened, read_at, stamp
from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.adapters.formats.torch_pickle import StoredTensor, interpret
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import (
    AdapterError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
)

_MAX_PICKLE_BYTES = 8 * 1024 * 1024
_MAX_ENTRIES = 200_000
_MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_COPY_AGAIN = "the file is cut short or damaged; copy or download it again"
_SAVE_AGAIN = "load the adapter with PEFT and save it as safetensors"


@dataclass(frozen=True)
class _Place:
    """One tensor: its bounds in the file, and its strides in elements."""

    info: TensorInfo
    stride: tuple[int, ...]


class TorchZipFile:
    """The checked directory of one file, and its tensors on request.

    As with SafetensorsFile nothing is held open, and a file that changes between two reads is
    refused. Raises InputMissingError, AdapterError for damage, UnsupportedAdapterError for what
    a file of tensors does not hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = MappingProxyType({})
        with opened(path) as file:
            self._stamp = stamp(file)
            self._tensors = _read_directory(file, path)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the pickle."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of one tensor; AdapterError if there is none of that name."""
        return self._place(name).info

    def read(self, name: str) -> FloatArray:
        """One float tensor as a contiguous array of its own, in the file's dtype.

        Raises UnsupportedAdapterError for a dtype that is no float, AdapterError if the file was
        changed.
        """
        expect_float(self.info(name).dtype, Where(file=self.path, tensor=name))
        return self.read_numbers(name)

    def read_numbers(self, name: str) -> NumberArray:
        """Like `read`, and for whole numbers as well."""
        place = self._place(name)
        info, where = place.info, Where(file=self.path, tensor=name)
        dtype = NUMBER_DTYPES[info.dtype]
        values = read_at(self.path, info.offset, info.size, self._stamp, where).view(dtype)
        strides = [step * dtype.itemsize for step in place.stride]
        view = np.lib.stride_tricks.as_strided(values, info.shape, strides, writeable=False)
        return np.array(view, order="C")

    def _place(self, name: str) -> _Place:
        place = self._tensors.get(name)
        if place is None:
            raise AdapterError(
                "the file has no such tensor",
                where=Where(file=self.path, tensor=name),
                hint=did_you_mean(name, self._tensors),
            )
        return place


def _read_directory(file: FileIO, path: Path) -> Mapping[str, _Place]:
    where = Where(file=path)
    try:
        archive = zipfile.ZipFile(_Directory(file.fileno()))
        entries = {entry.filename: entry for entry in archive.infolist()}
        repeated = len(entries) != len(archive.infolist())
    except _ZIP_ERRORS as error:
        raise AdapterError(
            f"the file is not a readable zip archive: {error}", where=where, hint=_COPY_AGAIN
        ) from error
    if repeated or len(entries) > _MAX_ENTRIES:
        raise AdapterError(
            f"the archive has {len(archive.infolist())} entries, expected at most {_MAX_ENTRIES}, "
            "each name once",
            where=where,
            hint=_SAVE_AGAIN,
        )
    pickles = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise UnsupportedAdapterError(
            f"the zip archive has {len(pickles)} entries data.pkl, expected one, as torch.save "
            "writes it",
            where=where,
            hint="name a file that torch.save wrote, or save the adapter as safetensors",
        )
    for entry in entries.values():
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise UnsupportedAdapterError(
                f"the entry {entry.filename!r} is compressed or encrypted, expected stored bytes "
                "as torch.save writes them",
                where=where,
                hint=_SAVE_AGAIN,
            )
    root = pickles[0].removesuffix("data.pkl")
    bounds = _Bounds(file, path, entries)
    order = entries.get(f"{root}byteorder")
    if order is not None and bounds.read(order.filename, 16) != b"little":
        raise UnsupportedAdapterError(
            "the tensors are not little-endian", where=where, hint=_SAVE_AGAIN
        )
    document = interpret(bounds.read(pickles[0], _MAX_PICKLE_BYTES), path)
    tensors = {
        name: _place(bounds, root, tensor, Where(file=path, tensor=name))
        for name, tensor in _tensors_of(document, path).items()
    }
    return MappingProxyType(tensors)


def _tensors_of(document: Any, path: Path) -> dict[str, StoredTensor]:
    """The top level of the pickle, which must be a dict of name to tensor."""
    if not isinstance(document, dict):
        raise UnsupportedAdapterError(
            f"the file holds a {type(document).__name__}, expected a dict of tensors",
            where=Where(file=path),
            hint="save the adapter's state dict alone, or save it with PEFT's save_pretrained",
        )
    for name, value in document.items():
        if not isinstance(value, StoredTensor) or not isinstance(name, str):
            raise UnsupportedAdapterError(
                f"the entry {name!r} is a {type(value).__name__}, expected a tensor under a name",
                where=Where(file=path, tensor=str(name)),
                hint="this may be a training checkpoint: save the adapter's state dict alone",
            )
    return document


def _place(bounds: _Bounds, root: str, tensor: StoredTensor, where: Where) -> _Place:
    """Check one tensor against the bytes of its storage."""
    storage, shape, stride = tensor.storage, tensor.shape, tensor.stride
    item = NUMBER_DTYPES[storage.dtype].itemsize
    start, size = bounds.of(f"{root}data/{storage.key}", where)
    if len(shape) != len(stride) or min((*shape, *stride, tensor.offset), default=0) < 0:
        raise AdapterError(
            f"the tensor has shape {list(shape)}, strides {list(stride)} and offset "
            f"{tensor.offset}, expected as many strides as axes and nothing below 0",
            where=where,
            hint=_COPY_AGAIN,
        )
    count = math.prod(shape)
    # the last element that the strides reach, counted from the first
    span = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else 0
    if storage.numel * item != size or tensor.offset + span > storage.numel or count > span:
        raise AdapterError(
            f"the tensor of shape {list(shape)}, strides {list(stride)} and offset {tensor.offset} "
            f"does not fit its storage of {storage.numel} {storage.dtype} in {size} bytes",
            where=where,
            hint=_COPY_AGAIN,
        )
    offset = start + tensor.offset * item
    return _Place(TensorInfo(storage.dtype, shape, offset, span * item), stride)


class _Bounds:
    """Where the bytes of an entry begin and how many there are."""

    def __init__(self, file: FileIO, path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> None:
        self._file = file
        self._where = Where(file=path)
        self._entries = entries
        self._known: dict[str, tuple[int, int]] = {}
        self._file_size = stamp(file)[0]

    def of(self, name: str, where: Where) -> tuple[int, int]:
        """Offset and size of an entry; AdapterError if there is none or it leaves the file."""
        if name not in self._known:
            entry = self._entries.get(name)
            if entry is None:
                raise AdapterError(
                    f"the archive has no entry {name!r}, which holds the tensor's bytes",
                    where=where,
                    hint=_COPY_AGAIN,
                )
            # the local header may carry other extra fields than the directory
            head = b""
            if 0 <= entry.header_offset < self._file_size:
                self._file.seek(entry.header_offset)
                head = self._file.read(_LOCAL_HEADER.size)
            if len(head) != _LOCAL_HEADER.size or head[:4] != LOCAL_MAGIC:
                raise AdapterError(
                    f"the entry {name!r} is not where the archive's directory says",
                    where=where,
                    hint=_COPY_AGAIN,
                )
            _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
            start = entry.header_offset + len(head) + name_bytes + extra_bytes
            if entry.file_size != entry.compress_size or start + entry.file_size > self._file_size:
                raise AdapterError(
                    f"the entry {name!r} of {entry.file_size} bytes leaves the file of "
                    f"{self._file_size} bytes",
                    where=where,
                    hint=_COPY_AGAIN,
                )
            self._known[name] = (start, entry.file_size)
        return self._known[name]

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a small entry; AdapterError if it is larger than `most`."""
        start, size = self.of(name, self._where)
        if size > most:
            raise AdapterError(
                f"the entry {name!r} has {size} bytes, expected at most {most}",
                where=self._where,
                hint="an adapter's directory is small; this file holds something else",
            )
        self._file.seek(start)
        return self._file.read(size)


class _Directory(FileIO):
    """The file as zipfile sees it, which takes memory for whatever size the archive claims."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "rb", closefd=False)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most as many bytes as the directory of an adapter has; ValueError for more."""
        left = os.fstat(self.fileno()).st_size - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {size} bytes")
        return super().read(max(size, 0)) or b""


_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    struct.error,
    EOFError,
    OverflowError,
    # a directory can name a place before the file's beginning
    OSError,
)
