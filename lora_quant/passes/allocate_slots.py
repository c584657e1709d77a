"""Pass: give every adapter of a use case its own rank range, the same at every attach point.

    both = 1.0 * tone (rank 4) + 0.6 * legal (rank 8)  ->  tone [0, 4), legal [4, 12)

R is the largest sum of ranks over the use cases, S the largest number of adapters in one, but
neither is below 2. With blockwise weights, slots start at multiples of the block size
(`rank_multiple`). An adapter without low rank anywhere, and one that is merged into the base's
weights, owns no rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.errors import ConfigError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.beyond_alpha import fixed_biases
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ADAPTERS_OPEN, SLOTS_ALLOCATED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.slots import Slot, SlotTable
from lora_quant.passes.stacking import check_stacking

# A quantized product of [1, 1] by [1, N], as alpha @ E of a single slot or B of rank 1 for a single
# token, keeps the compiler of the HTP busy without end (QNN 2.51). One idle entry avoids it.
_LEAST = 2


@dataclass(frozen=True)
class AllocateSlots:
    """Slots in the order of `adapter_names`, packed from rank 0."""

    name: ClassVar[str] = "allocate-slots"
    requires: ClassVar[tuple[Condition, ...]] = (ADAPTERS_OPEN,)
    ensures: ClassVar[tuple[Condition, ...]] = (SLOTS_ALLOCATED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises ConfigError if no use case has an adapter: there would be nothing to build."""
        check_stacking(compilation)
        adapters = compilation.having("adapters")
        multiple = compilation.options.rank_multiple
        use_cases: dict[str, tuple[Slot, ...]] = {}
        max_rank = 0
        for use_case in compilation.config.use_cases:
            slots: list[Slot] = []
            start = 0
            pairs = zip(use_case.adapter_names, use_case.adapter_alphas, strict=True)
            for index, (name, alpha) in enumerate(pairs):
                adapter = adapters[name]
                rank = 0 if compilation.options.merge is not None else adapter.rank
                slots.append(Slot(index, name, start, rank, float(alpha), adapter.scale))
                start += -(-rank // multiple) * multiple
            use_cases[use_case.name] = tuple(slots)
            max_rank = max(max_rank, start)
        if not any(use_cases.values()):
            raise _no_adapter(compilation)
        table = SlotTable(
            max_rank=max(max_rank, _LEAST) if max_rank else 0,
            slot_count=max(_LEAST, *(len(slots) for slots in use_cases.values())),
            use_cases=use_cases,
        )
        if table == compilation.slots:
            return PassResult(compilation, changed=False)
        allocated = replace(compilation, slots=table).with_findings(
            *negative_strengths(use_cases), *fixed_biases(compilation)
        )
        return PassResult(allocated, changed=True)


def _no_adapter(compilation: Compilation) -> ConfigError:
    merged = compilation.options.merge
    if merged is not None:
        return ConfigError(
            f"use case {merged!r} names no adapter, so there is nothing to merge",
            where=Where(file=compilation.config_file, field="adapter_names", use_case=merged),
            hint="choose one that does",
        )
    return ConfigError(
        "no use case names an adapter, so there is no branch to build",
        where=Where(file=compilation.config_file, field="use-case"),
        hint="list adapters in `adapter_names` of at least one use case",
    )


def negative_strengths(use_cases: Mapping[str, tuple[Slot, ...]]) -> Iterator[Finding]:
    """A warning for every slot whose strength is below 0."""
    for name, slots in use_cases.items():
        yield from (_negative(name, slot) for slot in slots if slot.alpha < 0)


def _negative(use_case: str, slot: Slot) -> Finding:
    return Finding(
        rule="slots/negative-strength",
        severity=Severity.WARNING,
        message=f"the strength {slot.alpha:g} of adapter {slot.adapter!r} is negative: in the "
        "vendor's flow the range of the alpha input starts at 0, so that the device would clip it",
        where=Where(use_case=use_case, adapter=slot.adapter),
        hint="check the range of the alpha input in what the converter makes of the graph",
    )
