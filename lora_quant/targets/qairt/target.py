"""Target `qairt`: input of qairt-converter, qairt-lora-importer and qnn-context-binary-generator.

qairt/model.onnx, its data             the graph with zero branches; weights are initializers
                                       (a final graph: as it was given)
qairt/lora_tensor_names.txt            names of the LoRA weights, one a line
qairt/base_encodings.json              encodings of every tensor of that graph
qairt/lora_importer_config.yaml        the use cases with their files
qairt/<use case>/lora_weights.safetensors
qairt/<use case>/quant_overrides.json  complete encodings
qairt/<use case>/quant_updatable_tensors.txt
qairt/<use case>/prompt.safetensors    the soft prompt of a use case that has one
qairt/genie_lora.json                  Genie's lora block, and per use case a text for the QNN
qairt/<use case>/qnn_lora_config.txt   provider (see device_configs)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.config.base_model import to_document
from lora_quant.config.documents import dump_yaml
from lora_quant.config.output_files import LoraImporterConfig, UseCaseOutputConfig
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import encodings_text
from lora_quant.findings import Finding
from lora_quant.graph.base.graph_bytes import graph_bytes
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.records import TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.weight_values import shared_weights, use_case_weights
from lora_quant.targets.files.file_names import check_file_names
from lora_quant.targets.files.given_graph import write_given_graph
from lora_quant.targets.files.graph_files import (
    MODEL,
    ZEROS,
    write_graph,
    zeros_location,
)
from lora_quant.targets.files.merged_graph import write_merged_graph
from lora_quant.targets.files.pack_folder import HashingWriter, PackFolder
from lora_quant.targets.files.prompt_file import write_prompt
from lora_quant.targets.files.safetensors_writer import write_safetensors
from lora_quant.targets.qairt.device_configs import GENIE_LORA, write_device_configs

BASE_ENCODINGS = "base_encodings.json"
TENSOR_NAMES = "lora_tensor_names.txt"
IMPORTER_CONFIG = "lora_importer_config.yaml"
WEIGHTS = "lora_weights.safetensors"
OVERRIDES = "quant_overrides.json"
UPDATABLE = "quant_updatable_tensors.txt"

_OWN = (MODEL, ZEROS, BASE_ENCODINGS, TENSOR_NAMES, IMPORTER_CONFIG, GENIE_LORA)


@dataclass(frozen=True)
class QairtTarget:
    """Writes the weights as safetensors beside one ONNX graph, and AIMET encodings per use case."""

    name: ClassVar[str] = "qairt"

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """Raises PackError if a file cannot be written, ConfigError if names collide."""
        if compilation.options.merge is not None:
            write_merged_graph(compilation, folder, self.name)
            return ()
        check_file_names(compilation, _own_names(compilation))
        records = tuple(w.record for w in updatable_weights(compilation.having("branched")))
        weights = [record.name for record in records]
        model = _write_graph(compilation, folder, self.name, weights)
        names = _lines(weights)
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
        write_device_configs(compilation, folder, self.name)
        return tuple(findings)

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


def _own_names(compilation: Compilation) -> tuple[str, ...]:
    """A final graph has no zeros but those that it brings, maybe under the same name."""
    return _OWN if compilation.given is None else tuple(name for name in _OWN if name != ZEROS)


def _write_graph(
    compilation: Compilation, folder: PackFolder, target: str, weights: Sequence[str]
) -> str:
    """The path of the graph, relative to the pack."""
    if compilation.given is not None:
        return write_given_graph(compilation, folder, target)
    zeros = zeros_location(compilation, folder, target)
    graph = graph_bytes(compilation.base, weights, zeros)
    return write_graph(compilation, folder, target, compilation.base.zeros, graph)


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
