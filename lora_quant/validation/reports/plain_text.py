"""Text that every report can hold.

A file's name need not be UTF-8: b"\\xff.json" -> "\\udcff.json" in Python -> "\\\\udcff.json" here.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

from lora_quant.errors import Where
from lora_quant.findings import Finding

_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with everything that UTF-8 cannot hold written as an escape."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_finding(finding: Finding) -> Finding:
    """The finding with such text in all its parts."""
    return replace(
        finding,
        message=plain(finding.message),
        where=_plain_where(finding.where),
        hint=None if finding.hint is None else plain(finding.hint),
    )


def _plain_where(where: Where) -> Where:
    changed: dict[str, str | Path] = {}
    for field in fields(where):
        value = getattr(where, field.name)
        if isinstance(value, str | Path) and plain(str(value)) != str(value):
            changed[field.name] = type(value)(plain(str(value)))
    return replace(where, **changed) if changed else where  # type: ignore[arg-type]
