"""Records of what a build read, by use; a file that several uses share is hashed once.

Graphs, adapters and documents have a SHA-256. Data that graphs share with the base is in the base's
own record; further data is told by samples, since it is too large to be read once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_quant.adapters.adapter import Adapter
from lora_quant.config.finding_records import portable_relative
from lora_quant.config.manifest_records import InputRecord
from lora_quant.graph.files.data_files import sampled_sha256, sha256_of
from lora_quant.graph.files.external_data import DataFile
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.exported.records import ExportedUseCases


class InputRecords:
    """Collects the records; their paths are relative to the folder `output`."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._digests: dict[Path, str] = {}
        self.records: list[InputRecord] = []

    def digest(self, path: Path) -> str:
        """The SHA-256 of a file."""
        if path not in self._digests:
            self._digests[path] = sha256_of(path)
        return self._digests[path]

    def add(self, role: str, path: Path, name: str | None = None) -> str:
        """Record one file, of the adapter or use case `name`; returns its SHA-256."""
        digest = self.digest(path)
        self.records.append(
            InputRecord(
                role=role,
                name=name,
                path=portable_relative(path.absolute(), self._output),
                size=path.stat().st_size,
                sha256=digest,
            )
        )
        return digest

    def add_graphs(self, compilation: Compilation) -> None:
        """The graphs of use cases, those that hold weights of a final graph among them."""
        shared = {data.path.resolve() for data in compilation.base.model.data_files}
        for name, path, data_files in _graphs(compilation):
            self.add("graph", path, name)
            for data in data_files:
                if data.path.resolve() not in shared:
                    self._add_sampled("graph-data", data, name)

    def add_adapter(self, adapter: Adapter, exported: ExportedUseCases) -> tuple[str, ...]:
        """What an adapter was read from: its files, or descriptions and a graph."""
        if adapter.name in exported.checkpoints:
            described = exported.descriptions[adapter.name]
            hashes = [self.add("adapter", path, adapter.name) for path in described]
            return (*hashes, self.digest(adapter.checkpoint.tensors.path))
        # Formats without a configuration of their own describe themselves in their weights.
        files = dict.fromkeys((adapter.checkpoint.config.file, adapter.checkpoint.tensors.path))
        return tuple(self.add("adapter", path, adapter.name) for path in files)

    def add_config(self, compilation: Compilation) -> None:
        """The configuration, and the documents and graphs that it or an option names."""
        if compilation.config_file is not None:
            self.add("config", compilation.config_file)
        mapping = compilation.config.attach_point_onnx_mapping
        if mapping is not None:
            self.add("attach-points", mapping)
        if compilation.options.map_from is not None:
            self.add("map-from", Path(compilation.options.map_from))
        for use_case in compilation.config.use_cases:
            if use_case.encodings is not None:
                self.add("encodings", use_case.encodings, use_case.name)
            updatable = use_case.updatable_tensors_file()
            if updatable is not None:
                self.add("updatable-tensors", updatable, use_case.name)

    def _add_sampled(self, role: str, data: DataFile, name: str) -> None:
        self.records.append(
            InputRecord(
                role=role,
                name=name,
                path=portable_relative(data.path.absolute(), self._output),
                size=data.size,
                sampled_sha256=sampled_sha256(data.path),
            )
        )


def _graphs(compilation: Compilation) -> Iterator[tuple[str, Path, tuple[DataFile, ...]]]:
    """Use case, its graph, and the data files of that."""
    if compilation.exported is not None:
        for use_case in compilation.exported.use_cases.values():
            yield use_case.name, use_case.model, use_case.data_files
    given = compilation.given
    if given is not None:
        for name, path in given.stored.items():
            yield name, path, given.data_files.get(name, ())
