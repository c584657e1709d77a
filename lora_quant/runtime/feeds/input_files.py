"""Inputs by name out of a file: nothing in it is executed, and it does not unfold without bound.

x.npz            input_ids.npy, attention_mask.npy    ->  {"input_ids": [1, 8], ...}
x.safetensors    the same names
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import MOST_NAME, InputMissingError, VerificationError, Where, cut

MOST_BYTES = 4 << 30
"""Of all arrays, unpacked: a compressed archive can hold a thousand times its size."""

_WRITE_HINT = "write them with numpy.savez or safetensors.numpy.save_file"
_READERS = (".npz", ".safetensors")


def read_inputs(path: Path) -> dict[str, Array]:
    """Arrays by input name from a .npz or .safetensors file.

    Raises InputMissingError if there is no such file, VerificationError if it is of another kind,
    damaged, holds a name twice, or has more than `MOST_BYTES`.
    """
    where = Where(file=path)
    if not path.is_file():
        raise InputMissingError("there is no file with inputs here", where=where)
    if path.suffix not in _READERS:
        raise VerificationError(
            f"inputs come as {' or '.join(_READERS)}, got {path.suffix!r}",
            where=where,
            hint=_WRITE_HINT,
        )
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except VerificationError:
        raise
    except Exception as error:  # the libraries raise their own kinds for damaged files
        raise VerificationError(
            f"the inputs cannot be read: {cut(str(error), most=MOST_NAME)}",
            where=where,
            hint=_WRITE_HINT,
        ) from error


def _read_npz(path: Path) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    # Not numpy.load: it gives bytes for an entry that is no array, and the last of equal names.
    with zipfile.ZipFile(path) as archive:
        _check_size(sum(entry.file_size for entry in archive.infolist()), path)
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in arrays:
                raise VerificationError(
                    f"the file holds the input {cut(name, most=MOST_NAME)!r} twice",
                    where=Where(file=path, tensor=name),
                    hint=_WRITE_HINT,
                )
            with archive.open(entry) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def _read_safetensors(path: Path) -> dict[str, Array]:
    _check_size(path.stat().st_size, path)
    return dict(load_file(path))


def _check_size(size: int, path: Path) -> None:
    if size > MOST_BYTES:
        raise VerificationError(
            f"the inputs take {size:,} bytes, expected at most {MOST_BYTES:,}",
            where=Where(file=path),
            hint="run them in parts",
        )
