"""Moving external data without reading it into memory, and telling one data file from another.

A copy goes through the kernel where it can (`copy_file_range`, which also shares blocks on file
systems that support it) while a second thread hashes the same bytes, so that every byte of a copy
is covered by the manifest. A file that stays where it is is only sampled: hashing 139 GB would
take minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import InputMissingError, LoraQuantError, PackError, Where

_CHUNK = 8 << 20
_STEP = 1 << 30
SAMPLE_BLOCKS = 256
SAMPLE_BLOCK_SIZE = 4096


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file, read in chunks; InputMissingError if it cannot be read."""
    return _hash(path, lambda: False)


def sampled_sha256(path: Path) -> str:
    """SHA-256 over the size and 256 evenly spaced blocks of 4096 bytes (all of a small file).

    Tells two exports apart and notices truncation; it does not notice a flipped bit between the
    blocks. Raises InputMissingError if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}:".encode())
            if size <= SAMPLE_BLOCKS * SAMPLE_BLOCK_SIZE:
                digest.update(file.read())
                return digest.hexdigest()
            last = size - SAMPLE_BLOCK_SIZE
            for block in range(SAMPLE_BLOCKS):
                file.seek(last * block // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BLOCK_SIZE))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def copy_with_sha256(source: Path, target: Path) -> str:
    """Copy a data file and return the SHA-256 of its bytes.

    Raises InputMissingError if the source cannot be read, PackError if the target cannot be written
    (a full disk) or the source changes while it is copied.
    """
    try:
        before = source.stat()
        reader = open_regular(source)
    except OSError as error:
        raise _unreadable(source, error) from error
    with reader, _Hasher(source) as hasher:
        try:
            with target.open("wb") as writer:
                _copy(reader, writer, before.st_size)
            copied = target.stat().st_size
        except OSError as error:
            raise PackError(
                f"the weights cannot be copied: {error.strerror or error}",
                where=Where(file=target),
                hint="free some space, choose another output folder, or use --beside-base, which "
                "copies nothing",
            ) from error
        digest = hasher.result()
        after = os.fstat(reader.fileno())
    if copied != before.st_size or _state(before) != _state(after):
        raise PackError(
            f"the weights changed while they were copied: got {copied} bytes, expected "
            f"{before.st_size}",
            where=Where(file=source),
            hint="build again when nothing writes to this file",
        )
    return digest


class _Hasher:
    """Hashes a file in a thread; leaving the context early stops it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._outcome: str | LoraQuantError = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Hasher:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> str:
        """The digest, once the whole file is hashed."""
        self._thread.join()
        if isinstance(self._outcome, LoraQuantError):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = _hash(self._path, self._stop.is_set)
        except LoraQuantError as error:
            self._outcome = error


def _hash(path: Path, stopped: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while not stopped() and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    copied = 0
    if hasattr(os, "copy_file_range"):
        # Not offered between every two file systems; a full disk shows again below.
        with contextlib.suppress(OSError):
            while copied < size:
                step = min(size - copied, _STEP)
                done = os.copy_file_range(reader.fileno(), writer.fileno(), step)
                if done == 0:
                    break
                copied += done
    if copied < size:
        reader.seek(copied)
        writer.seek(copied)
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> InputMissingError:
    return InputMissingError(
        f"the file cannot be read: {error.strerror or error}", where=Where(file=path)
    )
