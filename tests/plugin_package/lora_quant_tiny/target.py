"""A target that writes the names of the slots of each use case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import PackFolder


@dataclass(frozen=True)
class TinyTarget:
    """Writes `tiny/<use case>.txt`, one line per slot."""

    name: ClassVar[str] = "tiny"

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """One line per slot: adapter, first rank, rank."""
        for use_case, slots in compilation.having("slots").use_cases.items():
            text = "".join(f"{s.adapter} {s.start} {s.rank}\n" for s in slots)
            folder.write_text(f"{self.name}/{use_case}.txt", "slots", text, use_case)
        return (Finding("tiny/written", Severity.NOTE, "the tiny target was here"),)
