"""A configuration that is going to be written, and what a person should know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_quant.config.lora_config import LoraConfig
from lora_quant.configure.written_config import Notes
from lora_quant.findings import Finding, Severity


@dataclass(frozen=True, eq=False)
class Drafted:
    """A configuration with the paths as they were given, the notes on it, and what was noticed.

    `config` is None where something essential is missing. `decisions` are pairs of a subject and
    what was decided of it. `options` are those that a build of it needs.
    """

    config: LoraConfig | None
    notes: Notes = field(default_factory=Notes)
    findings: tuple[Finding, ...] = ()
    decisions: tuple[tuple[str, str], ...] = ()
    options: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a configuration, and nothing that stops a build of it."""
        return self.config is not None and not any(
            f.severity is Severity.ERROR for f in self.findings
        )
