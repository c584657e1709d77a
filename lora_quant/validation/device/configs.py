"""What use cases of one graph must have in common, seen from the configuration that lists them.

lora_config.yaml            encodings of use cases on one graph have one structure
lora_importer_config.yaml   one graph, whose inputs are none of the weights; encodings of use cases
                            have one structure
lora_output_files.yaml      the same per graph: parts of a model are graphs of their own

Where the graph is known, so is what meets at its nodes, which a file of encodings does not tell.
Files that cannot be read are for the checks between files to tell. One file is read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.output_files import LoraImporterConfig, LoraOutputFiles
from lora_quant.encodings.files import encodings_of
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.device import GRAPHS_DIFFER
from lora_quant.validation.device.encodings import refused_meetings
from lora_quant.validation.device.graph import weights_as_inputs
from lora_quant.validation.device.use_cases import StructuresOfUseCases
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.documents.opened import open_document
from lora_quant.validation.linked.graph_of import facts_if_readable, facts_of
from lora_quant.validation.request import Request

_WEIGHTS_SUFFIX = ".safetensors"


def check_lora_config(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """Findings of a `lora_config.yaml` and of the encodings that it names."""
    if not isinstance(check.content, LoraConfig):
        return
    structures: dict[Path, StructuresOfUseCases] = {}
    for use_case in check.content.use_cases:
        known = structures.setdefault(use_case.model, StructuresOfUseCases(complete=False))
        if use_case.encodings is not None:
            yield from _encodings(known, use_case.name, use_case.encodings, use_case.model)


def check_importer_config(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """Findings of a `lora_importer_config.yaml`, and of what it names."""
    if check.document is None or not isinstance(check.content, LoraImporterConfig):
        return
    use_cases = check.content.use_case
    first = use_cases[0]
    yield from _inputs(first.model_name, first.lora_weights)
    structures: dict[Path, StructuresOfUseCases] = {}
    for index, use_case in enumerate(use_cases):
        graph = use_case.model_name
        if graph != first.model_name and graph not in structures:
            yield GRAPHS_DIFFER.finding(
                f"{use_case.name!r} is of {graph.name!r}, {first.name!r} of "
                f"{first.model_name.name!r}",
                replace(
                    check.document.places()(("use_case", index, "model_name")),
                    use_case=use_case.name,
                ),
            )
        known = structures.setdefault(graph, StructuresOfUseCases(complete=True))
        if use_case.quant_overrides is not None:
            yield from _encodings(known, use_case.name, use_case.quant_overrides, graph)


def check_output_files(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """Findings of what a `lora_output_files.yaml` names."""
    if not isinstance(check.content, LoraOutputFiles):
        return
    structures: dict[str, StructuresOfUseCases] = {}
    for use_case in check.content.use_case:
        known = structures.setdefault(use_case.graph, StructuresOfUseCases(complete=True))
        if use_case.encodings is not None:
            yield from _encodings(known, use_case.name, use_case.encodings)


def _encodings(
    known: StructuresOfUseCases, owner: str, path: Path, graph: Path | None = None
) -> Iterator[Finding]:
    try:
        document = open_document(path)
        file = encodings_of(document.value, source=path)
    except LoraQuantError:
        return
    if file.version is not None:  # a fragment is laid over the base's file
        places = _of_use_case(entry_places(document), owner)
        yield from known.take(owner, file.encodings, places)
        facts = None if graph is None else facts_if_readable(graph)
        if facts is not None:
            yield from refused_meetings(file, facts, places)


def _inputs(graph: Path, weights: Path) -> Iterator[Finding]:
    """Weights of the first use case, whose names are those of all, that are inputs of the graph."""
    if weights.suffix != _WEIGHTS_SUFFIX:
        return
    try:
        yield from weights_as_inputs(facts_of(graph), SafetensorsFile(weights).names, graph)
    except LoraQuantError:
        return


def _of_use_case(places: Places, owner: str) -> Places:
    return lambda tensor: replace(places(tensor), use_case=owner)
