"""`lora_importer_config.yaml` and `lora_output_files.yaml` against the files that they name.

importer config    graph, weights and encodings of each use case
output files       weights and encodings; `graph` is a name there, so that only a base of the
                   request can be held against them

Weights replace initializers of the graph by name, the same ones in every use case. One use case is
looked at after the other, and of weights the header alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.config.output_files import LoraImporterConfig, LoraOutputFiles
from lora_quant.config.plain_values import PathParts
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import LoraQuantError, Where, did_you_mean, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.files.graph_facts import GraphFacts, TensorRole
from lora_quant.validation.catalogue.importer import (
    ABSOLUTE_PATH,
    BAD_FILE,
    MISSING_FILE,
    OUTSIDE,
    WEIGHTS_DIFFER,
    WEIGHTS_DTYPE,
    WEIGHTS_SHAPE,
    WEIGHTS_SHARED,
    WEIGHTS_TENSOR,
    WRONG_FILE,
)
from lora_quant.validation.documents.document_check import DocumentCheck, check_document
from lora_quant.validation.documents.entry_places import entry_places
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.documents.relative_paths import is_outside, normalised
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.kinds import ENCODINGS
from lora_quant.validation.linked.encodings import encodings_against_graph
from lora_quant.validation.linked.entries import Entries, Entry, first_problem
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.request import Request

_DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float",
    "F64": "double",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "U8": "uint8",
}
"""Name in a safetensors header -> ONNX element type."""

_GRAPH, _WEIGHTS, _ENCODINGS = "the graph", "the weights", "the encodings"
_KEYS = {
    "model_name": _GRAPH,
    "lora_weights": _WEIGHTS,
    "weights": _WEIGHTS,
    "quant_overrides": _ENCODINGS,
    "encodings": _ENCODINGS,
}

_Header = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor -> dtype and shape."""


def check_importer_config(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """Findings of a document that its reader accepts; never raises for content."""
    if check.document is None or not isinstance(
        check.content, LoraImporterConfig | LoraOutputFiles
    ):
        return
    entries = Entries(check.document, tuple(_entries(check.document)))
    yield from _paths(check.document, entries)
    yield from _ImporterCheck(entries, request.base).run()


def _entries(document: OpenedDocument) -> Iterator[Entry]:
    folder = document.path.parent
    for index, item in enumerate(document.value["use_case"]):
        for key, what in _KEYS.items():
            if isinstance(item.get(key), str):
                told = f"{what} of {item['name']!r}"
                at: PathParts = ("use_case", index, key)
                yield Entry(at, folder / item[key], told, use_case=item["name"])


def _paths(document: OpenedDocument, entries: Entries) -> Iterator[Finding]:
    """Paths that lead nowhere once the folder is somewhere else."""
    for entry in entries.every:
        text = _text(document, entry)
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
            message = f"the path {text!r} is absolute: {entry.what}"
            yield ABSOLUTE_PATH.finding(message, entries.where(entry))
        elif is_outside(normalised(text)):
            message = f"the path {text!r} leads out of this folder: {entry.what}"
            yield OUTSIDE.finding(message, entries.where(entry))


def _text(document: OpenedDocument, entry: Entry) -> str:
    value: Any = document.value
    for part in entry.at:
        value = value[part]
    return str(value)


@dataclass
class _ImporterCheck:
    """One run over one document.

    first: the header of the first use case that has one. strange: tensors of which was said that
    they are not as in the graph; then it is no news that use cases differ in them.
    """

    entries: Entries
    base: Path | None
    first: tuple[Entry, _Header] | None = None
    reported: set[Path] = field(default_factory=set)
    strange: set[str] = field(default_factory=set)

    def run(self) -> Iterator[Finding]:
        for entry, finding in self.entries.missing(MISSING_FILE, WRONG_FILE):
            self.reported.add(entry.file)
            yield finding
        by_use_case: dict[PathParts, dict[str, Entry]] = {}
        for entry in self.entries.every:
            by_use_case.setdefault(entry.at[:2], {})[_KEYS[entry.key]] = entry
        owners: dict[Path, dict[str, Entry]] = {}
        for named in by_use_case.values():
            yield from self._use_case(named)
            yield from self._shared(named, owners)

    def _shared(
        self, named: Mapping[str, Entry], owners: dict[Path, dict[str, Entry]]
    ) -> Iterator[Finding]:
        """Weights of an earlier use case, whose encodings are others.

        owners: weights -> the first use case that names them; it is added to.
        """
        weights, encodings = named.get(_WEIGHTS), named.get(_ENCODINGS)
        if weights is None or encodings is None:
            return
        first = owners.setdefault(weights.file, dict(named))
        if first[_ENCODINGS].file != encodings.file:
            yield WEIGHTS_SHARED.finding(
                f"{weights.use_case!r} has the weights of {first[_WEIGHTS].use_case!r} and other "
                f"encodings: {self.entries.shown(weights.file)}",
                self.entries.where(weights),
            )

    def _use_case(self, named: Mapping[str, Entry]) -> Iterator[Finding]:
        facts, problem = self._graph(named.get(_GRAPH))
        if problem is not None:
            yield problem
        weights = named.get(_WEIGHTS)
        if weights is not None and weights.file not in self.reported:
            yield from self._weights(weights, facts)
        encodings = named.get(_ENCODINGS)
        if encodings is not None and encodings.file not in self.reported:
            yield from self._encodings(encodings, facts)

    def _graph(self, entry: Entry | None) -> tuple[GraphFacts | None, Finding | None]:
        """The facts of the graph; why there are none, unless that was said before."""
        path = self.base if entry is None else entry.file
        if path is None or path in self.reported:
            return None, None
        try:
            return facts_of(path), None
        except LoraQuantError as error:
            self.reported.add(path)
            return None, finding_of(error, shown=path) if entry is None else self._bad(error, entry)

    def _weights(self, entry: Entry, facts: GraphFacts | None) -> Iterator[Finding]:
        try:
            file = SafetensorsFile(entry.file)
        except LoraQuantError as error:
            self.reported.add(entry.file)
            yield self._bad(error, entry)
            return
        header: _Header = {}
        for name in file.names:
            info = file.info(name)
            header[name] = _DTYPES.get(info.dtype, info.dtype.lower()), info.shape
        if facts is not None:
            yield from self._against_graph(entry, header, facts)
        if self.first is None:
            self.first = entry, header
        else:
            yield from self._against_first(entry, header, *self.first)

    def _against_graph(self, entry: Entry, header: _Header, facts: GraphFacts) -> Iterator[Finding]:
        stored = {name for name, fact in facts.tensors.items() if fact.is_param}
        unknown = [name for name in header if name not in stored]
        if unknown:
            self.strange.update(unknown)
            name = unknown[0]
            fact = facts.tensors.get(name)
            is_there = "" if fact is None else f"; {name!r} is there as: {fact.role.value}"
            message = (
                f"{len(unknown)} of {len(header)} tensors are no initializers of "
                f"{facts.path.name}: {some(unknown)}{is_there}"
            )
            hint = WEIGHTS_TENSOR.mend
            if fact is None:
                near = _like(name, stored)
                hint = f"{did_you_mean(name, near)} {hint}" if near else hint
            elif fact.role is TensorRole.INPUT:
                hint = "the converter takes LoRA weights as initializers, not as graph inputs"
            yield WEIGHTS_TENSOR.finding(message, self._where(entry, name), hint)
        for name in sorted(header.keys() & stored):
            dtype, shape = header[name]
            fact = facts.tensors[name]
            if fact.shape is not None and shape != fact.shape:
                self.strange.add(name)
                message = f"the tensor has the shape {list(shape)}, the graph has"
                yield WEIGHTS_SHAPE.finding(
                    f"{message} {list(fact.shape)}: {self.entries.shown(entry.file)}",
                    self._where(entry, name),
                )
            if fact.dtype is not None and dtype != fact.dtype:
                self.strange.add(name)
                message = f"the tensor is of type {dtype}, in the graph it is {fact.dtype}"
                yield WEIGHTS_DTYPE.finding(
                    f"{message}: {self.entries.shown(entry.file)}", self._where(entry, name)
                )

    def _against_first(
        self, entry: Entry, header: _Header, first: Entry, known: _Header
    ) -> Iterator[Finding]:
        lacking = [n for n in known if n not in header and n not in self.strange]
        added = [n for n in header if n not in known and n not in self.strange]
        changed = [
            n for n in header if n in known and header[n] != known[n] and n not in self.strange
        ]
        for names, what in (
            (lacking, f"lack tensors that those of {first.use_case!r} have"),
            (added, f"have tensors that those of {first.use_case!r} lack"),
            (changed, f"have tensors of another shape or type than those of {first.use_case!r}"),
        ):
            if names:
                message = f"the weights of {entry.use_case!r} {what}: {some(names)}"
                yield WEIGHTS_DIFFER.finding(message, self._where(entry, names[0]))

    def _encodings(self, entry: Entry, facts: GraphFacts | None) -> Iterator[Finding]:
        checked = check_document(entry.file)
        problem = first_problem(checked.findings)
        if checked.kind is not None and checked.kind not in ENCODINGS:
            file = self.entries.shown(entry.file)
            message = f"{file!r} is {checked.kind.value}, expected AIMET encodings: {entry.what}"
            yield WRONG_FILE.finding(message, self.entries.where(entry))
        elif problem is not None:
            first, more = problem
            message, where = self.entries.told(first, entry)
            message += f" (and {more} more problems)" if more else ""
            yield BAD_FILE.finding(message, where, first.hint)
        elif facts is not None and isinstance(checked.content, EncodingFile):
            assert checked.document is not None, "there is no content without a document"
            places = entry_places(checked.document)
            for finding in encodings_against_graph(checked.content, facts, places, branches=True):
                if finding.severity is Severity.NOTE:
                    yield finding
                    continue
                message, where = self.entries.told(finding, entry)
                yield replace(finding, message=message, where=where)

    def _bad(self, error: LoraQuantError, entry: Entry) -> Finding:
        message, where = self.entries.told(error, entry)
        return BAD_FILE.finding(message, where, error.hint)

    def _where(self, entry: Entry, tensor: str) -> Where:
        return replace(self.entries.where(entry), tensor=tensor)


def _like(name: str, names: set[str]) -> list[str]:
    """Names that end alike: comparing letter by letter takes long for all of a large graph."""
    return sorted(other for other in names if other[-8:] == name[-8:])[:1000]
