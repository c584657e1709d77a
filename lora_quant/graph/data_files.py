"""Moving external data without reading it into memory, and telling one data file from another.

A copy goes through the kernel where it can (`copy_file_range`, which also shares blocks on file
systems that support it) while a second thread hashes the same bytes, so that every byte of a copy
is covered by the manifest. A file that stays where it is is only sampled: hashing 139 GB would
take minutes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import BinaryIO

from lora_quant.errors import PackError, Where

_CHUNK = 8 << 20
SAMPLE_BLOCKS = 256
SAMPLE_BLOCK_SIZE = 4096


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """SHA-256 over the size and 256 evenly spaced blocks of 4096 bytes (all of a small file).

    Tells two exports apart and notices truncation; it does not notice a flipped bit between the
    blocks.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}:".encode())
    with path.open("rb") as file:
        if size <= SAMPLE_BLOCKS * SAMPLE_BLOCK_SIZE:
            digest.update(file.read())
            return digest.hexdigest()
        last = size - SAMPLE_BLOCK_SIZE
        for block in range(SAMPLE_BLOCKS):
            file.seek(last * block // (SAMPLE_BLOCKS - 1))
            digest.update(file.read(SAMPLE_BLOCK_SIZE))
    return digest.hexdigest()


def copy_with_sha256(source: Path, target: Path) -> str:
    """Copy a data file and return the SHA-256 of its bytes; the target is fsynced by the caller.

    Raises PackError if the disk is full or the source changes while it is copied.
    """
    size = source.stat().st_size
    digests: list[str] = []
    hasher = threading.Thread(target=lambda: digests.append(sha256_of(source)), daemon=True)
    hasher.start()
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            _copy(reader, writer, size)
    except OSError as error:
        raise PackError(
            f"the weights cannot be copied: {error.strerror}",
            where=Where(file=target),
            hint="free some space, choose another output folder, or use --beside-base, which "
            "copies nothing",
        ) from error
    finally:
        hasher.join()
    if not digests or target.stat().st_size != size or source.stat().st_size != size:
        raise PackError(
            f"the weights changed while they were copied: expected {size} bytes",
            where=Where(file=source),
        )
    return digests[0]


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while copied < size:
                step = os.copy_file_range(
                    reader.fileno(), writer.fileno(), min(size - copied, 1 << 30)
                )
                if step == 0:
                    break
                copied += step
        except OSError:
            # Not offered between these two file systems: go on with plain reads from here.
            if copied:
                reader.seek(copied)
                writer.seek(copied)
    if copied < size:
        reader.seek(copied)
        writer.seek(copied)
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
