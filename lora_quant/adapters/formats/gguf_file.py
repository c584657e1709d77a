"""The tensors of a GGUF file, read one at a time from their places."""

from __future__ import annotations

from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.adapters.files.opened import opened, read_at, stamp
from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.adapters.formats.gguf_header import read_header
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError, Where, did_you_mean


class GgufFile:
    """The checked header of one file, and its tensors on request.

    As with SafetensorsFile nothing is held open, and a file that changes between two reads is
    refused. `fields` are the typed fields of the header. Raises what `read_header` raises, and
    InputMissingError when there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            self._stamp = stamp(file)
            with BufferedReader(file) as buffered:
                header = read_header(buffered, self._stamp[0], path)
        self._tensors = header.tensors
        self.fields: Mapping[str, Any] = header.fields
        texts = {key: value for key, value in header.fields.items() if isinstance(value, str)}
        self.metadata: Mapping[str, str] = MappingProxyType(texts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in file order."""
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
        """One tensor as an array of its own, in the file's dtype; AdapterError if it was changed.

        The shape is NumPy's order: `[r, in]` for A, as PEFT has it.
        """
        info, where = self.info(name), Where(file=self.path, tensor=name)
        data = read_at(self.path, info.offset, info.size, self._stamp, where)
        return data.view(FLOAT_DTYPES[info.dtype]).reshape(info.shape)

    read_numbers = read  # the header has refused whole numbers
