"""Pass: add the LoRA branches of rank R to the graph; see lora_quant.graph.branches.

y = W x   ->   y = W x + B (s * (A x)), zero until a use case's weights are put in
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.graph.branches import add_branches
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import BRANCHES_BUILT, MODULES_RESOLVED, SLOTS_ALLOCATED
from lora_quant.passes.contract import Condition, PassResult


@dataclass(frozen=True)
class BuildBranches:
    """Edits the graph once; a compilation that already has its branches is left as it is."""

    name: ClassVar[str] = "build-branches"
    requires: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED, SLOTS_ALLOCATED)
    ensures: ClassVar[tuple[Condition, ...]] = (BRANCHES_BUILT,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises GraphError if a name that the branches need is taken."""
        if compilation.branched is not None:
            return PassResult(compilation, changed=False)
        slots = compilation.having("slots")
        branched = add_branches(
            compilation.base,
            compilation.having("resolution").points,
            max_rank=slots.max_rank,
            slot_count=slots.slot_count,
            alpha_name=compilation.options.alpha_name,
            alpha_layout=compilation.options.alpha_layout,
        )
        return PassResult(replace(compilation, branched=branched), changed=True)
