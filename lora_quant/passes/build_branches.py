"""Pass: add the LoRA branches of rank R to the graph; see lora_quant.graph.branching.branches.

y = W x + b   ->   y = g * (W (h * x) + b) + B (s * (A x)) + c, as far as adapters need it

The graph computes the base until a use case's weights are put in. Nothing is added if the use case
is to be merged into the base's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.errors import UnsupportedAdapterError, Where
from lora_quant.graph.branching.branches import add_branches
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import BRANCHES_BUILT, MODULES_RESOLVED, SLOTS_ALLOCATED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.replacements import distinct_targets


@dataclass(frozen=True)
class BuildBranches:
    """Edits the graph once; a compilation that already has its branches is left as it is."""

    name: ClassVar[str] = "build-branches"
    requires: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED, SLOTS_ALLOCATED)
    ensures: ClassVar[tuple[Condition, ...]] = (BRANCHES_BUILT,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises GraphError if a name that the branches need is taken.

        UnsupportedAdapterError for routers over different numbers of experts.
        """
        if compilation.branched is not None:
            return PassResult(compilation, changed=False)
        if compilation.options.merge is not None:
            empty = BranchedGraph((), (), None, max_rank=0, slot_count=0)
            return PassResult(replace(compilation, branched=empty), changed=True)
        slots = compilation.having("slots")
        branched = add_branches(
            compilation.base,
            compilation.having("resolution").points,
            max_rank=slots.max_rank,
            slot_count=slots.slot_count,
            alpha_name=compilation.options.alpha_name,
            alpha_layout=compilation.options.alpha_layout,
            experts=_experts(compilation),
            replaced=distinct_targets(compilation.replacements),
        )
        return PassResult(replace(compilation, branched=branched), changed=True)


def _experts(compilation: Compilation) -> int:
    """The number of experts that all routers have, 0 without any."""
    found = {
        shape.experts: adapter.name
        for adapter in compilation.having("adapters").values()
        for shape in adapter.shapes.values()
        if shape.experts
    }
    if len(found) > 1:
        told = " and ".join(f"{count} ({name!r})" for count, name in sorted(found.items()))
        raise UnsupportedAdapterError(
            f"adapters route over different numbers of experts: {told}",
            where=Where(file=compilation.config_file),
            hint="build them as separate packs",
        )
    return next(iter(found), 0)
