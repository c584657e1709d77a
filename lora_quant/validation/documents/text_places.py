"""Lines for what a reader noticed of a value: it knows the field or the tensor, and not the text.

a.encodings, field 'encodings[3].y_scale'  ->  a.encodings:28:7, field 'encodings[3].y_scale'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from lora_quant.config.located import LocatedDocument, Position, path_text
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding
from lora_quant.validation.documents.entry_places import entry_places
from lora_quant.validation.documents.opened import JSON_SUFFIXES, OpenedDocument, open_document


def with_lines(findings: Iterable[Finding], document: OpenedDocument) -> Iterator[Finding]:
    """The same findings, with line and column where field or tensor are found in the text."""
    entries = entry_places(document)

    @cache
    def fields() -> dict[str, Position]:
        located: LocatedDocument = document.positions()
        return {path_text(path): position for path, position in located.positions.items()}

    def located(where: Where) -> Where:
        if where.line is not None or (where.field is None and where.tensor is None):
            return where
        found = fields().get(where.field or "")
        if found is not None:
            return replace(where, line=found[0], column=found[1])
        if where.tensor is None:
            return where
        entry = entries(where.tensor)
        field = where.field or entry.field
        return replace(where, line=entry.line, column=entry.column, field=field)

    for finding in findings:
        yield replace(finding, where=located(finding.where))


def with_lines_of_files(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The same for findings in several files, of which those that are JSON are opened."""

    @cache
    def opened(path: Path) -> OpenedDocument | None:
        try:
            return open_document(path)
        except LoraQuantError:
            return None

    for finding in findings:
        where = finding.where
        document = None
        if where.file is not None and where.field is not None and where.line is None:
            is_text = where.file.suffix.lower() in JSON_SUFFIXES
            document = opened(where.file) if is_text else None
        yield from (finding,) if document is None else with_lines([finding], document)
