"""Findings: what a pass or a check noticed and a person should know, short of an error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lora_quant.errors import MOST_MESSAGE, NOWHERE, Where, cut


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

    def __post_init__(self) -> None:
        if len(self.message) > MOST_MESSAGE:
            object.__setattr__(self, "message", cut(self.message, most=MOST_MESSAGE))

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
