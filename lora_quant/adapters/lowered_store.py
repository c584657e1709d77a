"""Lowered modules that were costly to make, kept in a nameless temporary file.

A module that reads the base's weight, or is approximated, is lowered once; each use case then reads
the result back, one module at a time. The file has no name (or goes with its handle), so nothing is
left behind, whatever ends the process.
"""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.lowered import Lowered
from lora_quant.errors import PackError


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class LoweredStore:
    """Writes once, reads often; not for several threads."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the store)
        weakref.finalize(self, self._file.close)
        self._modules: dict[str, dict[str, _Place]] = {}
        self._end = 0

    def __contains__(self, module: str) -> bool:
        return module in self._modules

    def put(self, module: str, lowered: Lowered) -> None:
        """Keep one module; PackError if the disk is full."""
        places = {}
        try:
            self._file.seek(self._end)
            for field in fields(Lowered):
                values = getattr(lowered, field.name)
                if values is not None:
                    # a factor in float64 carries no more than float32 does into any graph
                    is_wide = values.dtype == np.float64 and field.name != "s"
                    kept = np.ascontiguousarray(values, np.float32 if is_wide else None)
                    places[field.name] = _Place(self._end, kept.shape, kept.dtype)
                    self._end += self._file.write(kept.view(np.uint8).data)
        except OSError as error:
            raise PackError(
                f"a lowered module cannot be kept in a temporary file: {error.strerror or error}",
                hint="free space in the folder for temporary files, or name another with TMPDIR",
            ) from error
        self._modules[module] = places

    def get(self, module: str) -> Lowered:
        """One module as it was put, float64 factors rounded to float32."""
        return Lowered(**{name: self._read(p) for name, p in self._modules[module].items()})

    def _read(self, place: _Place) -> NDArray[Any]:
        values = np.empty(place.shape, place.dtype)
        self._file.seek(place.offset)
        self._file.readinto(values.reshape(-1).view(np.uint8).data)
        return values
