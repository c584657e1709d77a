"""Loading a graph without its weights, and saving it again.

External data is never read: tensors keep their `external_data` entries, which are checked against
the data files' sizes and must stay inside the model's own folder (ONNX and ONNX Runtime refuse
links, absolute paths and `..`, so a graph that needs them could not be loaded later either).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from lora_quant.errors import GraphError, InputMissingError, Where

MINIMUM_OPSET = 7  # Mul and Add broadcast from here on
MINIMUM_IR = 4  # before, every initializer had to be a graph input as well


@dataclass(frozen=True)
class DataFile:
    """One external data file: its location as the graph spells it, and where it lies."""

    location: str
    path: Path
    size: int


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
    if not path.is_file():
        raise InputMissingError(
            "the ONNX graph does not exist" if not path.exists() else "the ONNX graph is no file",
            where=where,
            hint="check `model_name` in the configuration; relative paths start at its folder",
        )
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise GraphError(
            f"this is not a readable ONNX file: {error}",
            where=where,
            hint="a truncated download, or a text or external-data file under an .onnx name",
        ) from error
    except OSError as error:
        raise InputMissingError(
            f"the ONNX graph cannot be read: {error.strerror}", where=where
        ) from error
    _check_versions(proto, where)
    return ModelFile(path, proto, _data_files(proto, path))


def serialize(proto: ModelProto) -> bytes:
    """The bytes of an `.onnx` file; the same graph gives the same bytes."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def default_opset(proto: ModelProto) -> int:
    """Version of the default operator set, 0 if the model imports none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every subgraph nested in the attributes of its nodes."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    pending.append(attribute.g)
                elif attribute.type == AttributeProto.GRAPHS:
                    pending.extend(attribute.graphs)


def _check_versions(proto: ModelProto, where: Where) -> None:
    if not proto.graph.node:
        raise GraphError("the ONNX file holds no graph", where=where)
    opset = default_opset(proto)
    if opset < MINIMUM_OPSET or proto.ir_version < MINIMUM_IR:
        raise GraphError(
            f"the graph is of opset {opset}, IR version {proto.ir_version}; expected at least "
            f"opset {MINIMUM_OPSET} and IR version {MINIMUM_IR}",
            where=where,
            hint="export the model again with a current exporter, or convert it with "
            "onnx.version_converter",
        )


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that may have external data: initializers and tensors in attributes."""
    for graph in iter_graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.TENSORS:
                    yield from attribute.tensors


def _data_files(proto: ModelProto, model: Path) -> tuple[DataFile, ...]:
    folder = model.parent
    found: dict[str, DataFile] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = Where(file=model, tensor=tensor.name)
        location = entries.get("location", "")
        data = found.get(location)
        if data is None:
            data = found[location] = _locate(location, folder, where)
        _check_range(entries, data, where)
    return tuple(sorted(found.values(), key=lambda d: d.location))


def _locate(location: str, folder: Path, where: Where) -> DataFile:
    posix = PurePosixPath(location)
    if (
        not location
        or posix.is_absolute()
        or PureWindowsPath(location).is_absolute()
        or ".." in posix.parts
        or ".." in PureWindowsPath(location).parts
    ):
        raise GraphError(
            f"external data at {location!r} is not inside the model's own folder",
            where=where,
            hint="save the model again with its data file beside it",
        )
    path = folder / location
    if not path.is_file():
        raise InputMissingError(
            f"the external data file {location!r} of the graph does not exist",
            where=Where(file=path, tensor=where.tensor),
            hint="copy the data file into the graph's folder; both belong together",
        )
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise GraphError(
            f"external data at {location!r} is a symbolic link",
            where=where,
            hint="ONNX Runtime refuses links to data: put the file itself into the model's folder",
        )
    return DataFile(location, path, path.stat().st_size)


def _check_range(entries: dict[str, str], data: DataFile, where: Where) -> None:
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", "0"))
    except ValueError as error:
        raise GraphError(
            "external data has no whole-number offset or length", where=where
        ) from error
    if offset < 0 or length < 0 or offset + length > data.size:
        raise GraphError(
            f"the tensor wants bytes {offset} to {offset + length} of {data.location!r}, which has "
            f"{data.size} bytes",
            where=where,
            hint="the data file is truncated or belongs to another graph",
        )
