"""What a reader may do with any input: give a value, or raise a LoraQuantError that can be shown.

Findings are held to the same: text that every report can carry, of a length that a person can read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding

MOST_TEXT = 20_000
"""Characters of one error or finding; what a file says can be of any length."""


class UnfitTextError(AssertionError):
    """An error or a finding that cannot be shown."""


def settle(run: Callable[[], Iterable[Finding] | None]) -> None:
    """Call `run`; anything that escapes from here is a defect."""
    try:
        findings = list(run() or ())
    except LoraQuantError as error:
        _expect_fit(str(error))
        json.dumps(error.where.as_dict())
        return
    for finding in findings:
        document = finding.as_dict()
        _expect_fit(f"{finding.message}{finding.where}{finding.hint}")
        _expect_fit(json.dumps(document, allow_nan=False, ensure_ascii=False))


def _expect_fit(text: str) -> None:
    if len(text) > MOST_TEXT:
        raise UnfitTextError(f"{len(text)} characters: {text[:200]!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnfitTextError(f"no UTF-8 form: {text[:200]!r}") from error
