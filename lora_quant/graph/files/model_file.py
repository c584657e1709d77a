"""Loading a graph without its weights, and turning it into bytes again.

External data is never read: tensors keep their `external_data` entries, which are checked against
the data files' sizes; see lora_quant.graph.files.external_data.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from lora_quant.config.missing_path import missing_hint
from lora_quant.config.regular_file import open_regular
from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.files.external_data import DataFile, check_tensors
from lora_quant.graph.files.message_count import has_more_parts
from lora_quant.graph.files.structure import check_structure

MINIMUM_OPSET = 7  # Mul and Add broadcast from here on
_LARGEST_VERSION = 2**31 - 1  # onnx looks operators up by versions of 32 bits
MINIMUM_IR = 4  # before, every initializer had to be a graph input as well
PROTOBUF_LIMIT = 2**31 - 1
COUNTED_FROM = 64 * 1024 * 1024
"""Bytes; the parts of a smaller file take a few gigabytes at most."""
MOST_PARTS = 20_000_000
"""A million nodes with ten fields each, and as much again for attributes and tensors."""


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A graph in memory, without its external data."""

    path: Path
    proto: ModelProto
    data_files: tuple[DataFile, ...]

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return default_opset(self.proto)


def load_model(path: Path) -> ModelFile:
    """Read the graph at `path`, leaving external data on disk.

    Raises InputMissingError if there is no such file, GraphError if it is not a usable ONNX graph
    or if its external data is missing, too short or outside the model's folder.
    """
    where = Where(file=path)
    data = _read(path, where)
    _check_parts(data, where)
    try:
        proto = ModelProto.FromString(data)
    except DecodeError as error:
        raise GraphError(
            f"this is not a readable ONNX file: {error}",
            where=where,
            hint="a truncated download, or a text or external-data file under an .onnx name",
        ) from error
    size = len(data)
    del data
    _check_versions(proto, where)
    check_structure(proto, where)
    return ModelFile(path, proto, check_tensors(proto, path, size))


def serialize(proto: ModelProto, where: Where) -> bytes:
    """The bytes of an `.onnx` file; the same graph gives the same bytes.

    Raises GraphError above protobuf's limit of 2 GiB.
    """
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise _too_large("the graph with its branches would be larger", where) from error
    if len(data) > PROTOBUF_LIMIT:
        raise _too_large(f"the graph with its branches would take {len(data)} bytes, more", where)
    return data


def plain_domain(domain: str) -> str:
    """A domain by one name: that of ONNX itself is "" as well as "ai.onnx"."""
    return "" if domain == "ai.onnx" else domain


def default_opset(proto: ModelProto) -> int:
    """Version of the default operator set, 0 if the model imports none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _read(path: Path, where: Where) -> bytes:
    try:
        _check_kind(path.stat().st_mode, where)
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > PROTOBUF_LIMIT:
                raise _too_large("this is no ONNX graph: it is larger", where)
            return _read_up_to(file, size)
    except InputMissingError:
        raise
    except (OSError, ValueError) as error:
        message = f"the ONNX graph cannot be read: {getattr(error, 'strerror', None) or error}"
        hint = "check `model_name` in the configuration; relative paths start at its folder"
        if isinstance(error, (FileNotFoundError, ValueError)):
            message = "the ONNX graph does not exist"
            hint = missing_hint(path, hint)
        raise InputMissingError(message, where=where, hint=hint) from error


def _read_up_to(file: FileIO, size: int) -> bytes:
    """As many bytes as the file had when it was opened, also if it grows meanwhile."""
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _check_kind(mode: int, where: Where) -> None:
    """A pipe would be waited for, a device read without an end."""
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputMissingError(
            "the ONNX graph is not a regular file",
            where=where,
            hint="name the `.onnx` file itself",
        )


def _check_parts(data: bytes, where: Where) -> None:
    if len(data) > COUNTED_FROM and has_more_parts(data, ModelProto.DESCRIPTOR, MOST_PARTS):
        raise GraphError(
            f"the ONNX file has more than {MOST_PARTS:,} fields, which no exporter writes",
            where=where,
            hint="the file is damaged, or made to exhaust memory",
        )


def _too_large(what: str, where: Where) -> GraphError:
    return GraphError(
        f"{what} than the 2 GiB that an ONNX file can hold",
        where=where,
        hint="save the base graph with external data, and name the graph, not the data file",
    )


def _check_versions(proto: ModelProto, where: Where) -> None:
    if not proto.graph.node:
        raise GraphError(
            "the ONNX file holds no graph",
            where=where,
            hint="is it empty, or another kind of file under an .onnx name?",
        )
    opset = default_opset(proto)
    if opset < MINIMUM_OPSET or proto.ir_version < MINIMUM_IR:
        raise GraphError(
            f"the graph is of opset {opset}, IR version {proto.ir_version}; expected at least "
            f"opset {MINIMUM_OPSET} and IR version {MINIMUM_IR}",
            where=where,
            hint="export the model again with a current exporter, or convert it with "
            "onnx.version_converter",
        )
    for imported in proto.opset_import:
        if abs(imported.version) > _LARGEST_VERSION:
            raise GraphError(
                f"the graph imports version {imported.version} of the operators of "
                f"{imported.domain!r}, which no exporter writes",
                where=where,
                hint="the graph is damaged; export it again",
            )
