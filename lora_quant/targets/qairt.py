"""Target `qairt`: input of qairt-converter, qairt-lora-importer and qnn-context-binary-generator.

qairt/model.onnx, its data             the graph with zero branches; weights are initializers
qairt/lora_tensor_names.txt            names of the LoRA weights, one a line
qairt/base_encodings.json              encodings of every tensor of that graph
qairt/lora_importer_config.yaml        the use cases with their files
qairt/<use case>/lora_weights.safetensors
qairt/<use case>/quant_overrides.json  complete encodings
qairt/<use case>/quant_updatable_tensors.txt
qairt/<use case>/prompt.safetensors    the soft prompt of a use case that has one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.config.base_model import to_document
from lora_quant.config.documents import dump_yaml
from lora_quant.config.names import folder_key
from lora_quant.config.output_files import LoraImporterConfig, UseCaseOutputConfig
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import encodings_text
from lora_quant.errors import ConfigError, PackError, Where
from lora_quant.findings import Finding
from lora_quant.graph.records import TensorRecord
from lora_quant.graph.saving import graph_bytes
from lora_quant.graph.updatable_weights import updatable_weights
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.weight_values import shared_weights, use_case_weights
from lora_quant.targets.merged_graph import write_merged_graph
from lora_quant.targets.pack_folder import (
    GRAPH_SUFFIX,
    ZEROS_SUFFIX,
    HashingWriter,
    PackFolder,
    neighbour_stem,
)
from lora_quant.targets.prompt_file import write_prompt
from lora_quant.targets.safetensors_writer import write_safetensors

MODEL = "model.onnx"
ZEROS = "lora_zeros.data"
BASE_ENCODINGS = "base_encodings.json"
TENSOR_NAMES = "lora_tensor_names.txt"
IMPORTER_CONFIG = "lora_importer_config.yaml"
WEIGHTS = "lora_weights.safetensors"
OVERRIDES = "quant_overrides.json"
UPDATABLE = "quant_updatable_tensors.txt"


@dataclass(frozen=True)
class QairtTarget:
    """Writes the weights as safetensors beside one ONNX graph, and AIMET encodings per use case."""

    name: ClassVar[str] = "qairt"

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """Raises PackError if a file cannot be written, ConfigError if names collide."""
        if compilation.options.merge is not None:
            write_merged_graph(compilation, folder, self.name)
            return ()
        _check_folder_names(compilation)
        records = tuple(w.record for w in updatable_weights(compilation.having("branched")))
        model = self._write_graph(compilation, folder, records)
        names = _lines(record.name for record in records)
        folder.write_text(f"{self.name}/{TENSOR_NAMES}", "lora-tensor-names", names)
        merged = compilation.merged
        if merged is not None:
            with folder.create(f"{self.name}/{BASE_ENCODINGS}", "base-encodings") as sink:
                _write_encodings(merged.base, sink)
        findings: list[Finding] = []
        items = []
        use_cases = compilation.config.use_cases
        for number, use_case in enumerate(use_cases):
            compilation.progress(f"use case {use_case.name}", number, len(use_cases))
            findings += self._write_use_case(compilation, folder, use_case.name, records)
            items.append(self._importer_item(use_case.name, model, merged is not None))
        importer = dump_yaml(to_document(LoraImporterConfig(use_case=items)))
        folder.write_text(f"{self.name}/{IMPORTER_CONFIG}", "importer-config", importer)
        return tuple(findings)

    def _write_graph(
        self, compilation: Compilation, folder: PackFolder, records: tuple[TensorRecord, ...]
    ) -> str:
        """Write the graph and its data; returns its path relative to the pack."""
        base = compilation.base
        names = [record.name for record in records]
        if compilation.options.beside_base:
            stem = neighbour_stem(base.path, folder.output)
            zeros = stem + ZEROS_SUFFIX
            if base.zeros.block_size:
                with folder.create_neighbour(base.path.parent / zeros, "graph-data") as sink:
                    sink.write(bytes(base.zeros.block_size))
            model = base.path.parent / f"{stem}{GRAPH_SUFFIX}"
            with folder.create_neighbour(model, "graph") as sink:
                sink.write(graph_bytes(base, names, zeros))
            return folder.relative(model)
        if base.zeros.block_size:
            with folder.create(f"{self.name}/{ZEROS}", "graph-data") as sink:
                sink.write(bytes(base.zeros.block_size))
        for data in base.model.data_files:
            compilation.progress(f"copy {data.location}", 0, 1)
            folder.copy(f"{self.name}/{data.location}", "graph-data", data.path)
        path = f"{self.name}/{MODEL}"
        with folder.create(path, "graph") as sink:
            sink.write(graph_bytes(base, names, ZEROS))
        return path

    def _write_use_case(
        self,
        compilation: Compilation,
        folder: PackFolder,
        name: str,
        records: tuple[TensorRecord, ...],
    ) -> tuple[Finding, ...]:
        place = f"{self.name}/{name}"
        merged = compilation.merged
        updatable = compilation.having("updatable").encodings
        findings: tuple[Finding, ...] = ()
        ranges = WeightRanges() if merged is not None else None
        with folder.create(f"{place}/{WEIGHTS}", "weights", name) as sink:
            write_safetensors(sink, records, _weights(compilation, name, ranges))
        if merged is not None and ranges is not None:
            overrides, findings = merged.for_use_case(name, ranges)
            with folder.create(f"{place}/{OVERRIDES}", "quant-overrides", name) as sink:
                _write_encodings(overrides, sink)
            updatable &= set(overrides.encodings)
        folder.write_text(
            f"{place}/{UPDATABLE}", "quant-updatable-tensors", _lines(sorted(updatable)), name
        )
        write_prompt(compilation, folder, self.name, name)
        return findings

    def _importer_item(self, name: str, model: str, has_encodings: bool) -> UseCaseOutputConfig:
        """Paths are relative to the folder of the importer config; `model` is to the pack's."""
        inside = model.startswith(f"{self.name}/")
        return UseCaseOutputConfig(
            name=name,
            model_name=Path(model.removeprefix(f"{self.name}/") if inside else f"../{model}"),
            lora_weights=Path(name, WEIGHTS),
            quant_overrides=Path(name, OVERRIDES) if has_encodings else None,
        )


def _weights(
    compilation: Compilation, use_case: str, ranges: WeightRanges | None
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Values of a use case in the order of updatable_weights; ranges are noted on the way."""
    for point in use_case_weights(compilation, use_case):
        if ranges is not None:
            ranges.observe(point)
        yield from point.values.items()
    for record, values in shared_weights(compilation, use_case):
        if ranges is not None:
            ranges.take(record.name, values)
        yield record.name, values


def _write_encodings(file: EncodingFile, sink: HashingWriter) -> None:
    for piece in encodings_text(file):
        sink.write(piece.encode())


def _lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _check_folder_names(compilation: Compilation) -> None:
    """A use case's folder must not be one of the files, nor a data file's folder."""
    taken = {folder_key(n) for n in (MODEL, ZEROS, BASE_ENCODINGS, TENSOR_NAMES, IMPORTER_CONFIG)}
    if not compilation.options.beside_base:
        for data in compilation.base.model.data_files:
            first = folder_key(data.location.split("/")[0])
            if first in taken:
                raise PackError(
                    f"the base's data file {data.location!r} has the name of a file of the pack",
                    where=Where(file=compilation.base.path),
                    hint="save the base graph with another name for its data file",
                )
            taken.add(first)
    for use_case in compilation.config.use_cases:
        if folder_key(use_case.name) in taken:
            raise ConfigError(
                f"the use case name {use_case.name!r} is the name of a file of the pack",
                where=Where(file=compilation.config_file, use_case=use_case.name),
                hint="choose another name for the use case",
            )
