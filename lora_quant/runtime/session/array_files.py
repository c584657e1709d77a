"""Writing arrays by name into a .npz or .safetensors file: the same arrays give the same bytes."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import PackError, Where

SUFFIXES = (".npz", ".safetensors")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold
_HINT = "check permissions and free space, or choose another file"


def check_output(path: Path, *, force: bool) -> None:
    """Raise PackError if a file cannot be written there, or is there already."""
    if path.suffix not in SUFFIXES:
        raise PackError(
            f"outputs are written as {' or '.join(SUFFIXES)}, got {path.suffix!r}",
            where=Where(file=path),
        )
    if path.is_dir():
        raise PackError("the output file is a folder", where=Where(file=path))
    if path.exists() and not force:
        raise PackError(
            "the output file is there already",
            where=Where(file=path),
            hint="choose another one, or replace it with --force",
        )
    if not path.absolute().parent.is_dir():
        raise PackError(
            "the folder of the output file does not exist",
            where=Where(file=path),
            hint="make it first, or choose another file",
        )


def write_arrays(path: Path, arrays: Mapping[str, Array], *, force: bool = False) -> None:
    """Write a file, which appears whole or not at all.

    Raises PackError as `check_output` does, if the file cannot be written, and for arrays of text,
    which neither format holds.
    """
    check_output(path, force=force)
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise PackError(
                f"the output {name!r} is {array.dtype}, expected numbers",
                where=Where(file=path, tensor=name),
                hint="write other outputs only: name them with --output-name",
            )
    waiting: Path | None = None
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        waiting = Path(name)
        with os.fdopen(number, "wb") as file:
            _write(file, path.suffix, arrays)
        waiting.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        waiting.replace(path)
    except (OSError, SafetensorError) as error:
        raise PackError(f"cannot write: {error}", where=Where(file=path), hint=_HINT) from error
    finally:
        if waiting is not None:
            waiting.unlink(missing_ok=True)


def _write(file: BinaryIO, suffix: str, arrays: Mapping[str, Array]) -> None:
    if suffix == ".safetensors":
        file.write(save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
        return
    # Not numpy.savez: it takes names as arguments, some of which are its own.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
