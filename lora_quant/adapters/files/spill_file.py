"""Arrays put aside in a nameless temporary file, and read back one at a time.

The file has no name (or goes with its handle), so nothing is left behind, whatever ends the
process.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import PackError


@dataclass(frozen=True)
class Place:
    """Where one array lies in the file, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class SpillFile:
    """Writes once, reads often; not for several threads."""

    def __init__(self) -> None:
        with _on_disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the arrays)
        weakref.finalize(self, self._file.close)
        self._end = 0

    def put(self, values: NDArray[Any]) -> Place:
        """Keep one array; PackError if the disk is full."""
        kept = np.ascontiguousarray(values)
        place = Place(self._end, values.shape, kept.dtype)
        with _on_disk():
            self._file.seek(self._end)
            self._end += self._file.write(kept.reshape(-1).view(np.uint8).data)
        return place

    def get(self, place: Place) -> NDArray[Any]:
        """One array as it was put, contiguous; PackError if it could not be kept."""
        values = np.empty(place.shape, place.dtype)
        with _on_disk():  # what waits in a buffer is written first
            self._file.seek(place.offset)
            self._file.readinto(values.reshape(-1).view(np.uint8).data)
        return values


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackError(
            f"what was computed cannot be kept in a temporary file: {error.strerror or error}",
            hint="free space in the folder for temporary files, or name another with TMPDIR",
        ) from error
