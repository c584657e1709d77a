"""Writing arrays by name into a .npz or .safetensors file: the same arrays give the same bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from lora_quant.config.output_file import cannot_write_file, check_output_file
from lora_quant.config.whole_files import write_file
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import PackError, Where

SUFFIXES = (".npz", ".safetensors")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def check_output(path: Path, *, force: bool) -> None:
    """Raise PackError if a file cannot be written there, or is there already."""
    if path.suffix not in SUFFIXES:
        raise PackError(
            f"outputs are written as {' or '.join(SUFFIXES)}, got {path.suffix!r}",
            where=Where(file=path),
        )
    check_output_file(path, force=force)


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
    write_file(path, lambda file: _write(file, path, arrays), force=force)


def _write(file: BinaryIO, path: Path, arrays: Mapping[str, Array]) -> None:
    if path.suffix == ".safetensors":
        try:
            text = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        except SafetensorError as error:
            raise cannot_write_file(path, error) from error
        file.write(text)
        return
    # Not numpy.savez: it takes names as arguments, some of which are its own.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
