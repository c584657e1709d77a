"""`lora_config.yaml` against everything that it names, and against what a build would say.

1. files exist, adapters open, the base opens, the mapping fits it
2. if nothing is wrong so far: all passes of a build that write nothing
3. if something is wrong: every other file by itself, so that all problems are told at once

Each problem stands at the entry that names the file; the message has the place inside of it. What
the passes notice short of refusing keeps the place that they give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.real_path import real_path
from lora_quant.config.use_case_graphs import base_model, with_own_graphs
from lora_quant.errors import ConfigError, GraphError, LoraQuantError
from lora_quant.findings import Finding, Severity
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.files.model_file import load_model
from lora_quant.passes.dry_run import DryRun, dry_run
from lora_quant.passes.fitting import Fitting
from lora_quant.validation.catalogue.config import (
    BAD_FILE,
    BUILD_REFUSED,
    MISSING_FILE,
    MODULES,
    NEEDS_OPTIONS,
    NO_BASE,
    WRONG_FILE,
)
from lora_quant.validation.documents.document_check import DocumentCheck, check_document
from lora_quant.validation.documents.recognise import recognise
from lora_quant.validation.found.recognise_file import read_head, recognise_file
from lora_quant.validation.kinds import ENCODINGS, Kind
from lora_quant.validation.linked.adapters_of import OpenedAdapters, open_adapters, value_problems
from lora_quant.validation.linked.attach_map import attach_map_findings
from lora_quant.validation.linked.config_entries import config_entries, folded, placed
from lora_quant.validation.linked.encodings import encodings_of_config
from lora_quant.validation.linked.entries import Entries, Entry, first_problem
from lora_quant.validation.linked.graph_of import linear_nodes
from lora_quant.validation.request import Request

_Mapping = dict[str, list[str]]


def check_lora_config(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """Findings of a configuration that its reader accepts; the files that it names are opened.

    A base of the request stands in for the one that the configuration names. Nothing is written.
    """
    if check.document is None or not isinstance(check.content, LoraConfig):
        return
    config = check.content
    if request.base is not None:
        config = _on_base(config, request.base)
    yield from _ConfigCheck(config, config_entries(config, check.document)).run()


def _on_base(config: LoraConfig, base: Path) -> LoraConfig:
    """The configuration with `base` as its base graph."""
    try:
        old = real_path(base_model(config))
    except ConfigError:
        return config
    use_cases = [
        u.model_copy(update={"model": base}) if real_path(u.model) == old else u
        for u in config.use_cases
    ]
    return config.model_copy(update={"use_cases": use_cases})


class _ConfigCheck:
    """One run over one configuration."""

    def __init__(self, config: LoraConfig, entries: Entries) -> None:
        self.config = config
        self.entries = entries
        self.missing: set[Path] = set()
        self.reported: set[Path] = set()
        self.base: BaseGraph | None = None
        self.mapping: _Mapping | None = None
        self.adapters = OpenedAdapters()

    def run(self) -> Iterator[Finding]:
        """All findings, in the order of the module's docstring."""
        found = [*self._missing(), *self._adapters(), *self._base(), *self._mapping()]
        yield from found
        said = [f for f in found if f.severity is Severity.ERROR]
        refused = None
        if not said and self.base is not None and not self.adapters.dense:
            try:
                tried = dry_run(
                    self.config, base=self.base, config_file=self.entries.document.shown
                )
            except LoraQuantError as error:
                refused = error
            else:
                for finding in folded(tried.findings):
                    yield placed(finding, self.config, self.entries)
                yield from encodings_of_config(self.config)
                yield from self._options(tried)
                yield from value_problems(self.adapters.opened, self.entries)
        self.base = None  # the passes edited it
        if said or refused is not None:
            deeper = [*self._other_files(), *self._modules(refused)]
            yield from deeper
            if refused is not None and not self._is_said(refused, deeper):
                yield self._refused(refused)

    def _is_said(self, refused: LoraQuantError, deeper: list[Finding]) -> bool:
        """Whether another finding has the reason already, or is about the same file."""
        file = refused.where.file
        return any(refused.message in f.message for f in deeper) or (
            file is not None and real_path(file) in self.reported
        )

    def _missing(self) -> Iterator[Finding]:
        for entry, finding in self.entries.missing(MISSING_FILE, WRONG_FILE):
            self.missing.add(entry.file)
            yield finding

    def _adapters(self) -> Iterator[Finding]:
        self.adapters = open_adapters(self.config, self.entries, self.missing)
        yield from self.adapters.findings

    def _base(self) -> Iterator[Finding]:
        try:
            path = base_model(self.config, self.entries.document.shown)
        except ConfigError as error:
            first = next(e for e in self.entries.every if e.use_case is not None)
            yield NO_BASE.finding(error.message, self.entries.where(first), error.hint)
            return
        if path in self.missing:
            return
        try:
            self.base = open_base(path)
        except LoraQuantError as error:
            yield self._bad(error, self._entry("model_name", path))

    def _mapping(self) -> Iterator[Finding]:
        path = self.config.attach_point_onnx_mapping
        if path is None or path in self.missing:
            return
        entry = self._entry("attach_point_onnx_mapping", path)
        checked = check_document(path, kind=Kind.ATTACH_POINTS)
        problem = first_problem(checked.findings)
        if problem is not None and checked.document is not None:
            kind = recognise(checked.document.value, path)
            if kind is not None and kind is not Kind.ATTACH_POINTS:
                yield self._wrong_kind(entry, kind, Kind.ATTACH_POINTS.value)
                return
        if problem is not None:
            yield self._bad_document(problem, entry)
        elif self.base is not None and checked.document is not None:
            self.mapping = checked.content
            nodes = linear_nodes(self.base)
            for finding in attach_map_findings(checked.content, checked.document.places, nodes):
                message, where = self.entries.told(finding, entry)
                yield replace(finding, message=message, where=where)

    def _options(self, tried: DryRun) -> Iterator[Finding]:
        if tried.reason is None:
            return
        message, where = tried.reason.message, tried.reason.where
        entry = self.entries.naming(where)
        if entry is not None:
            message, where = self.entries.told(tried.reason, entry)
        message = f"a build needs {tried.options}: {message}"
        finding = NEEDS_OPTIONS.finding(message, where, tried.reason.hint)
        # A build with these options was tried, and none of its steps refused anything.
        yield replace(finding, severity=Severity.NOTE)

    def _refused(self, error: LoraQuantError) -> Finding:
        entry = self.entries.naming(error.where)
        if entry is None:
            where = replace(error.where, file=error.where.file or self.entries.document.shown)
            return BUILD_REFUSED.finding(error.message, where, error.hint)
        message, where = self.entries.told(error, entry)
        return BUILD_REFUSED.finding(message, where, error.hint)

    def _other_files(self) -> Iterator[Finding]:
        """Encodings and the graphs of use cases, which only the dry run opened so far."""
        for entry in self.entries.distinct:
            if entry.file in self.missing or real_path(entry.file) in self.reported:
                continue
            if entry.key == "quant_overrides":
                yield from self._encodings(entry)
            elif entry.key == "model_name":
                try:
                    load_model(entry.file)
                except LoraQuantError as error:
                    yield self._bad(error, entry)

    def _encodings(self, entry: Entry) -> Iterator[Finding]:
        kind = recognise_file(entry.file, read_head(entry.file), entry.file.stat().st_size)
        if kind is not None:
            yield self._wrong_kind(entry, kind, "AIMET encodings")
            return
        checked = check_document(entry.file)
        problem = first_problem(checked.findings)
        if checked.kind is not None and checked.kind not in ENCODINGS:
            yield self._wrong_kind(entry, checked.kind, "AIMET encodings")
        elif problem is not None:
            yield self._bad_document(problem, entry)

    def _modules(self, refused: LoraQuantError | None) -> Iterator[Finding]:
        """All modules without a place, where a build stops at the first.

        Graphs of use cases may tell modules that the base does not; then the build alone knows.
        """
        base = self._base_path()
        if base is None or not (refused is None or isinstance(refused, GraphError)):
            return
        if with_own_graphs(self.config, base):
            return
        try:
            fitting = Fitting(open_base(base), self.mapping, self.config.attach_point_onnx_mapping)
        except LoraQuantError:
            return  # it was said of the base already
        for name, adapter in self.adapters.opened.items():
            entry = self.entries.of_adapter(name)[0]
            for finding in fitting.problems(adapter):
                message, where = self.entries.told(finding, entry)
                yield MODULES.finding(message, replace(where, adapter=name), finding.hint)

    def _base_path(self) -> Path | None:
        try:
            path = base_model(self.config)
        except ConfigError:
            return None
        return None if path in self.missing else path

    def _entry(self, key: str, path: Path) -> Entry:
        return next(e for e in self.entries.every if e.key == key and e.file == path)

    def _wrong_kind(self, entry: Entry, kind: Kind, expected: str) -> Finding:
        file = self.entries.shown(entry.file)
        message = f"{file!r} is {kind.value}, expected {expected}: {entry.what}"
        self.reported.add(real_path(entry.file))
        return WRONG_FILE.finding(message, self.entries.where(entry))

    def _bad(self, error: LoraQuantError, entry: Entry) -> Finding:
        message, where = self.entries.told(error, entry)
        self.reported.add(real_path(entry.file))
        return BAD_FILE.finding(message, where, error.hint)

    def _bad_document(self, problem: tuple[Finding, int], entry: Entry) -> Finding:
        first, more = problem
        message, where = self.entries.told(first, entry)
        if more:
            message += f" (and {more} more problems)"
        self.reported.add(real_path(entry.file))
        return BAD_FILE.finding(message, where, first.hint)
