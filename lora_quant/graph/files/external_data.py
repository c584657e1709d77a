"""External data: where it lies, and whether it holds what the tensors say, without reading it.

A data file must lie inside the model's own folder: ONNX and ONNX Runtime refuse links, absolute
paths and `..`, so that a graph which needs them could not be loaded later either.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import ModelProto, TensorProto

from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.files.walk import iter_tensors

# Types whose name does not tell their width.
_NAMED_BITS = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}


@dataclass(frozen=True)
class DataFile:
    """One external data file: its location relative to the graph's folder, and where it lies."""

    location: str
    path: Path
    size: int


def check_tensors(proto: ModelProto, model: Path, model_size: int) -> tuple[DataFile, ...]:
    """The data files of a model, each tensor's range and size having been checked.

    `model_size` is the size of the graph file in bytes: no tensor inside it can be larger, so that
    a shape made up to exhaust memory is noticed before anything is allocated for it. Raises
    GraphError for a tensor that cannot be what it says, InputMissingError for a missing data file.
    """
    found: dict[str, DataFile] = {}
    for tensor in iter_tensors(proto):
        where = Where(file=model, tensor=tensor.name)
        if any(size < 0 for size in tensor.dims):
            raise GraphError(
                f"a tensor has shape {list(tensor.dims)}, expected no negative size", where=where
            )
        needed = stored_size(tensor, where)
        if tensor.data_location != TensorProto.EXTERNAL:
            # Typed fields take at least one byte per element, packed ones as much as `needed`.
            least = needed if needed is None else min(needed, math.prod(tensor.dims))
            if least is not None and least > model_size:
                raise GraphError(
                    f"a tensor of shape {list(tensor.dims)} needs {needed} bytes, more than the "
                    f"whole file of {model_size}",
                    where=where,
                    hint="the file is damaged",
                )
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        data = found.get(location)
        if data is None:
            data = found[location] = _locate(location, model.parent, where)
        _check_range(entries, data, needed, where)
    unique = {data.location: data for data in found.values()}
    return tuple(unique[location] for location in sorted(unique))


def stored_size(tensor: TensorProto, where: Where) -> int | None:
    """Bytes that a tensor takes; None where its type alone does not tell."""
    if tensor.data_type == TensorProto.STRING:
        return None
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
    except ValueError:
        name = "UNDEFINED"
    digits = re.search(r"\d+", name)
    bits = int(digits.group()) if digits else _NAMED_BITS.get(name, 0)
    if bits == 0:
        raise GraphError(
            f"a tensor has element type {tensor.data_type}, which this version of onnx does not "
            "know",
            where=where,
            hint="install a newer onnx, or export the graph again",
        )
    # How types of 6 bits are packed is not settled.
    return None if bits == 6 else (math.prod(tensor.dims) * bits + 7) // 8


def _locate(location: str, folder: Path, where: Where) -> DataFile:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or posix.anchor or windows.anchor or ".." in {*posix.parts, *windows.parts}:
        raise GraphError(
            f"external data at {location!r} is not inside the model's own folder",
            where=where,
            hint="save the model again with its data file beside it",
        )
    path = folder / posix
    try:
        status = path.lstat()
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputMissingError(
            f"the external data file {location!r} of the graph does not exist",
            where=where,
            hint="copy the data file into the graph's folder; both belong together",
        ) from error
    if stat.S_ISLNK(status.st_mode) or not inside:
        raise GraphError(
            f"external data at {location!r} is a symbolic link",
            where=where,
            hint="ONNX Runtime refuses links to data: put the file itself into the model's folder",
        )
    if not stat.S_ISREG(status.st_mode):
        raise GraphError(f"external data at {location!r} is not a file", where=where)
    return DataFile(str(posix), path, status.st_size)


def _check_range(entries: dict[str, str], data: DataFile, needed: int | None, where: Where) -> None:
    offset = _whole(entries, "offset", 0, where)
    length = _whole(entries, "length", needed or 0, where)
    if needed is not None and length != needed:
        raise GraphError(
            f"the tensor's external data has a length of {length} bytes, but its shape and type "
            f"need {needed}",
            where=where,
            hint="the graph is damaged; save it again from its source",
        )
    if offset + length > data.size:
        raise GraphError(
            f"the tensor wants bytes {offset} to {offset + length} of {data.location!r}, which has "
            f"{data.size} bytes",
            where=where,
            hint="the data file is truncated or belongs to another graph",
        )


def _whole(entries: dict[str, str], key: str, default: int, where: Where) -> int:
    text = entries.get(key)
    if text is None:
        return default
    # More digits than any file size has are not worth the time to convert.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise GraphError(
            f"the {key} of external data is {text[:40]!r}, expected a whole number of bytes",
            where=where,
            hint="the graph is damaged; save it again from its source",
        )
    return int(text)
