"""Opening a weights file for as long as a read takes, and noticing that it has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import AdapterError, InputMissingError, Where

Stamp = tuple[int, int]
Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """The file, unbuffered; InputMissingError if it is none or cannot be read."""
    if not _is_file(path):
        problem = "is not a regular file" if os.path.lexists(path) else "does not exist"
        raise InputMissingError(
            f"the weights file {problem}", where=Where(file=path), hint="check the path"
        )
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise InputMissingError(
            f"the file cannot be read: {error.strerror or error}",
            where=Where(file=path),
            hint="check the path and its permissions",
        ) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long, or holds a zero byte
        return False


def stamp(file: FileIO) -> Stamp:
    """Size and time of the last change: what tells that a file is still the same."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def read_at(path: Path, offset: int, size: int, expected: Stamp, where: Where) -> Bytes:
    """Bytes of one tensor; AdapterError if the file is shorter or not the one of `expected`."""
    with opened(path) as file:
        if stamp(file) != expected:
            raise AdapterError(
                "the file was changed since its header was read",
                where=where,
                hint="do not write to an adapter while it is compiled; start again",
            )
        file.seek(offset)
        return read_bytes(file, size, where)


def read_bytes(file: FileIO, size: int, where: Where) -> Bytes:
    """Exactly `size` bytes from the current position; a raw read may return fewer at a time."""
    data = np.empty(size, np.uint8)
    rest = data.data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise AdapterError(
                f"the file ended {len(rest)} bytes too early while it was read", where=where
            )
        rest = rest[count:]
    return data
