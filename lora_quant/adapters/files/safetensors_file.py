"""Read a safetensors file tensor by tensor, without mapping or loading the rest of it.

A mapped file counts as resident memory page by page; a read does not. So memory is bounded by the
largest tensor, whatever the size of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from lora_quant.adapters.files.safetensors_header import (
    LENGTH_BYTES,
    TensorInfo,
    header_length,
    parse_header,
)
from lora_quant.errors import (
    AdapterError,
    InputMissingError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_quant.adapters.lowered import FloatArray

FLOAT_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsFile:
    """The checked header of one file, and its tensors on request.

    The file is not held open: each read opens it again and makes sure that it is still the file
    whose header was read. An instance therefore needs no closing and may be shared by threads.
    Raises InputMissingError when there is no such file and AdapterError when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as file:
            self._stamp = _stamp(file)
            size = self._stamp[0]
            length = header_length(bytes(_read(file, min(LENGTH_BYTES, size))), size, path)
            header = parse_header(bytes(_read(file, length)), size, path)
        self._tensors = header.tensors
        self.metadata = header.metadata

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of their bytes."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of one tensor; AdapterError if there is none of that name."""
        info = self._tensors.get(name)
        if info is None:
            raise AdapterError(
                "the file has no such tensor",
                where=Where(file=self.path, tensor=name),
                hint=did_you_mean(name, self._tensors),
            )
        return info

    def read(self, name: str) -> FloatArray:
        """One float tensor as an array of its own, in the file's dtype and shape.

        BF16 becomes ml_dtypes.bfloat16. Raises UnsupportedAdapterError for integers, fp8 and other
        types that a trained adapter weight does not have, AdapterError if the file was changed.
        """
        info = self.info(name)
        return self._floats(name, 0, info.size).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `[start, stop)` of the first axis of one float tensor; raises what `read` raises.

        Only their bytes are read. IndexError if the tensor has no such rows.
        """
        rows, *inner = self.info(name).shape or (0,)
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of {rows}")
        width = self.info(name).size // rows if rows else 0
        return self._floats(name, start * width, stop * width).reshape(stop - start, *inner)

    def _floats(self, name: str, start: int, stop: int) -> FloatArray:
        """Bytes `[start, stop)` of one tensor as floats, flat."""
        info = self.info(name)
        dtype = FLOAT_DTYPES.get(info.dtype)
        where = Where(file=self.path, tensor=name)
        if dtype is None:
            raise UnsupportedAdapterError(
                f"the tensor is {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
                where=where,
                hint="save the adapter's weights in float32, float16 or bfloat16",
            )
        with _opened(self.path) as file:
            if _stamp(file) != self._stamp:
                raise AdapterError(
                    "the file was changed since its header was read",
                    where=where,
                    hint="do not write to an adapter while it is compiled; start again",
                )
            file.seek(info.offset + start)
            data = _read(file, stop - start)
        return data.view(dtype)


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    # asked first because opening a pipe would wait for its other end
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InputMissingError(
            f"the weights file {problem}", where=Where(file=path), hint="check the path"
        )
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise InputMissingError(
            f"the file cannot be read: {error.strerror or error}",
            where=Where(file=path),
            hint="check the path and its permissions",
        ) from error


def _stamp(file: FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read(file: FileIO, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Exactly `size` bytes from the current position; a raw read may return fewer at a time."""
    data = np.empty(size, np.uint8)
    rest = data.data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise AdapterError(
                f"the file ended {len(rest)} bytes too early while it was read",
                where=Where(file=Path(file.name)),
            )
        rest = rest[count:]
    return data
