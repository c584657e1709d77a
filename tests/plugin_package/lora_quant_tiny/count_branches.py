"""A pass that reports how many branches were built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import BRANCHES_BUILT
from lora_quant.passes.contract import Condition, PassResult


@dataclass(frozen=True)
class CountBranches:
    """Adds a finding and nothing else."""

    name: ClassVar[str] = "count-branches"
    requires: ClassVar[tuple[Condition, ...]] = (BRANCHES_BUILT,)
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        """Always changes the state: it adds a finding."""
        count = len(compilation.having("branched").branches)
        finding = Finding("tiny/branches", Severity.NOTE, f"{count} branches")
        return PassResult(compilation.with_findings(finding), changed=True)
