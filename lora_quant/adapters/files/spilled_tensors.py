"""Tensors of an adapter that were taken out of other files, offered like those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from lora_quant.adapters.files.dtypes import FLOAT_DTYPES, NumberArray
from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.adapters.files.spill_file import Place, SpillFile
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, did_you_mean

_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


class SpilledTensors:
    """A TensorSource that grows: what was put can be read from then on.

    `path` is the file that the tensors were taken from, for errors. Several may share one `spill`.
    """

    def __init__(self, spill: SpillFile, path: Path) -> None:
        self._spill = spill
        self._path = path
        self._places: dict[str, Place] = {}

    @property
    def path(self) -> Path:
        """The file that the tensors were taken from."""
        return self._path

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order in which they were put."""
        return tuple(self._places)

    @property
    def metadata(self) -> Mapping[str, str]:
        """There is none."""
        return MappingProxyType({})

    def put(self, name: str, values: FloatArray) -> None:
        """Keep one tensor under a new name.

        Raises UnsupportedAdapterError for a type that is no float of a checkpoint, PackError if the
        disk is full.
        """
        if values.dtype not in _NAMES:
            raise UnsupportedAdapterError(
                f"the tensor is {values.dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
                where=Where(file=self._path, tensor=name),
                hint="export the adapter in float32, float16 or bfloat16",
            )
        self._places[name] = self._spill.put(values)

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape; the offset is that in the temporary file."""
        place = self._place(name)
        return TensorInfo(_NAMES[place.dtype], place.shape, place.offset, place.size)

    def read(self, name: str) -> FloatArray:
        """One tensor as it was put, contiguous; AdapterError if there is none of that name."""
        return self._spill.get(self._place(name))

    def read_numbers(self, name: str) -> NumberArray:
        """Like `read`: all tensors are floats."""
        return self.read(name)

    def _place(self, name: str) -> Place:
        place = self._places.get(name)
        if place is None:
            raise AdapterError(
                "the adapter has no such tensor",
                where=Where(file=self._path, tensor=name),
                hint=did_you_mean(name, self._places),
            )
        return place
