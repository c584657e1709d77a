"""Read a safetensors file tensor by tensor, without mapping or loading the rest of it.

A mapped file counts as resident memory page by page; a read does not. So memory is bounded by the
largest tensor, whatever the size of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_quant.adapters.files.dtypes import NumberArray, expect_float, number_dtype
from lora_quant.adapters.files.opened import opened, read_at, read_bytes, stamp
from lora_quant.adapters.files.safetensors_header import (
    LENGTH_BYTES,
    TensorInfo,
    header_length,
    parse_header,
)
from lora_quant.errors import AdapterError, Where, did_you_mean

if TYPE_CHECKING:
    from lora_quant.adapters.lowered import FloatArray


class SafetensorsFile:
    """The checked header of one file, and its tensors on request.

    The file is not held open: each read opens it again and makes sure that it is still the file
    whose header was read. An instance therefore needs no closing and may be shared by threads.
    Raises InputMissingError when there is no such file and AdapterError when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        where = Where(file=path)
        with opened(path) as file:
            self._stamp = stamp(file)
            size = self._stamp[0]
            start = bytes(read_bytes(file, min(LENGTH_BYTES, size), where))
            length = header_length(start, size, path)
            header = parse_header(bytes(read_bytes(file, length, where)), size, path)
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
        expect_float(self.info(name).dtype, Where(file=self.path, tensor=name))
        return self.read_numbers(name)

    def read_numbers(self, name: str) -> NumberArray:
        """Like `read`, and for whole numbers as well."""
        info = self.info(name)
        return self._values(name, 0, info.size).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `[start, stop)` of the first axis of one float tensor; raises what `read` raises.

        Only their bytes are read. IndexError if the tensor has no such rows.
        """
        rows, *inner = self.info(name).shape or (0,)
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of {rows}")
        expect_float(self.info(name).dtype, Where(file=self.path, tensor=name))
        width = self.info(name).size // rows if rows else 0
        return self._values(name, start * width, stop * width).reshape(stop - start, *inner)

    def _values(self, name: str, start: int, stop: int) -> NumberArray:
        """Bytes `[start, stop)` of one tensor as numbers, flat."""
        info, where = self.info(name), Where(file=self.path, tensor=name)
        dtype = number_dtype(info.dtype, where)
        data = read_at(self.path, info.offset + start, stop - start, self._stamp, where)
        return data.view(dtype)
