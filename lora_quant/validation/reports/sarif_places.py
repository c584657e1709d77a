"""Where a finding is, in the terms of SARIF, and by what it is known again.

Where(file=a/b c.yaml, line=3, tensor=x)  ->  a/b%20c.yaml below %SRCROOT%, region, logical location
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from lora_quant.errors import MOST_PLACE, Where, cut
from lora_quant.validation.reports.plain_text import plain
from lora_quant.validation.reports.source_root import below, file_uri, percent_encoded

BASE: Final = "%SRCROOT%"
_KINDS: Final = {
    "field": "property",
    "use_case": "use case",
    "adapter": "adapter",
    "module": "module",
    "tensor": "tensor",
    "node": "node",
}
"""Part of a place -> kind of the logical location; the first and the fourth are SARIF's own."""


class Places:
    """Makes locations. `relative` tells whether one of them was below the root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.relative = False

    def location(self, where: Where, checked: Path) -> dict[str, Any]:
        """The location of `where`, in the file or pack `checked` if it names no file."""
        physical: dict[str, Any] = {"artifactLocation": self._artifact(where.file or checked)}
        if where.line is not None:
            physical["region"] = {"startLine": where.line}
            if where.column is not None:
                physical["region"]["startColumn"] = where.column
        location: dict[str, Any] = {"physicalLocation": physical}
        logical = [
            {"name": cut(plain(name), most=MOST_PLACE), "kind": kind}
            for part, kind in _KINDS.items()
            if (name := getattr(where, part)) is not None
        ]
        if logical:
            location["logicalLocations"] = logical
        return location

    def _artifact(self, path: Path) -> dict[str, str]:
        inside = below(path, self._root)
        if inside is None:
            return {"uri": file_uri(path)}
        self.relative = True
        return {"uri": percent_encoded(inside), "uriBaseId": BASE}

    @staticmethod
    def bases() -> dict[str, Any]:
        """What the base of relative URIs is; its own place differs from machine to machine."""
        return {BASE: {"description": {"text": "The root of the checkout that was validated."}}}


class Fingerprints:
    """Says by what a result is known again: rule, file, and part of the file.

    Lines and messages change when something else is edited, so they do not count. Results that are
    alike in the rest are numbered in their order.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, rule: str, location: dict[str, Any]) -> dict[str, str]:
        """The value of partialFingerprints."""
        file = location["physicalLocation"]["artifactLocation"]["uri"]
        parts = [rule, file, location.get("logicalLocations", [])]
        text = json.dumps(parts, sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
        self._seen[digest] += 1
        return {"finding/v1": f"{digest}:{self._seen[digest]}"}
