"""Findings: what a pass or a check noticed and a person should know, short of an error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lora_quant.errors import NOWHERE, Where


class Severity(Enum):
    """How much a finding matters: an error fails a check, the others inform."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One observation. `rule` is a stable id such as `encodings/missing-activation`."""

    rule: str
    severity: Severity
    message: str
    where: Where = NOWHERE
    hint: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The finding as JSON values."""
        result: dict[str, object] = {
            "rule": self.rule,
            "severity": self.severity.value,
            "message": self.message,
        }
        if self.where:
            result["where"] = self.where.as_dict()
        if self.hint:
            result["hint"] = self.hint
        return result
