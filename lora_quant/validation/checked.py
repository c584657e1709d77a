"""What a validation found, per file or pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_quant.findings import Finding, Severity
from lora_quant.validation.kinds import Kind


@dataclass(frozen=True)
class Checked:
    """One file or pack: what it is (None if it is not known) and what was found.

    ignored: findings that the person chose not to see. contents: what the file holds, which is no
    matter of right and wrong: reports and `ok` leave it out. traceback: of a defect of ours, as
    Python prints it.
    """

    path: Path
    kind: Kind | None
    findings: tuple[Finding, ...]
    ignored: int = 0
    contents: tuple[Finding, ...] = ()
    traceback: str | None = None

    @property
    def problems(self) -> int:
        """How many findings are errors."""
        return sum(1 for f in self.findings if f.severity is Severity.ERROR)


@dataclass(frozen=True)
class Validation:
    """Everything that was checked, in the order of the paths, folders sorted by name.

    fail_on: the least severity that makes the validation fail.
    """

    checked: tuple[Checked, ...]
    fail_on: Severity = Severity.ERROR

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings."""
        return tuple(f for item in self.checked for f in item.findings)

    @property
    def ok(self) -> bool:
        """Whether no finding is as grave as `fail_on`."""
        order = list(Severity)
        failing = order[: order.index(self.fail_on) + 1]
        return not any(f.severity in failing for f in self.findings)
