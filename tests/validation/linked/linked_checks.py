"""Running the check of one document as validation does, and finding a finding in what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.document_check import DocumentCheck, check_document
from lora_quant.validation.request import Request

Check = Callable[[DocumentCheck, Request], Iterable[Finding]]


def findings(check: Check, path: Path, base: Path | None = None) -> list[Finding]:
    """What a check says of a sound document."""
    document = check_document(path)
    assert document.content is not None, document.findings
    return list(check(document, Request(base=base)))


def serious(found: Iterable[Finding]) -> list[Finding]:
    """Errors and warnings."""
    return [f for f in found if f.severity is not Severity.NOTE]


def one(found: Iterable[Finding], rule: str) -> Finding:
    """The only finding of a rule."""
    of_rule = [f for f in found if f.rule == rule]
    assert len(of_rule) == 1, [(f.rule, f.message) for f in found]
    return of_rule[0]


def line_of(path: Path, text: str, nth: int = 1) -> int:
    """The number of the nth line that holds a text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, start=1) if text in line][nth - 1]
