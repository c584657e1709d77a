"""Slots in the ranks of a final graph.

placed    as in a graph of this tool's own: in the order of the use case, packed from rank 0
stored    the same, by what is known of the adapters: the graph's file is what holds the values
"""

from __future__ import annotations

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import ConfigError, Where
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import Slot, SlotTable


def final_slots(compilation: Compilation, branched: BranchedGraph) -> SlotTable:
    """The slots of every use case; ConfigError if the graph has too few ranks for them."""
    given = compilation.having("given")
    multiple = compilation.options.rank_multiple
    found = {
        use_case.name: _slots(
            compilation, use_case, 1 if use_case.name in given.stored else multiple
        )
        for use_case in compilation.config.use_cases
    }
    for name, slots in found.items():
        end = max((slot.start + slot.rank for slot in slots), default=0)
        if end > branched.max_rank:
            raise ConfigError(
                f"the adapters of use case {name!r} have {end} ranks, and the branches of the "
                f"given graph {branched.max_rank}",
                where=Where(file=compilation.base.path, use_case=name),
                hint="check the ranks in the adapters' descriptions, or build a graph of a larger "
                "max rank",
            )
    return SlotTable(branched.max_rank, branched.slot_count, found)


def _slots(
    compilation: Compilation, use_case: UseCaseInputConfig, multiple: int
) -> tuple[Slot, ...]:
    adapters, described = compilation.having("adapters"), compilation.having("given").described
    slots: list[Slot] = []
    start = 0
    pairs = zip(use_case.adapter_names, use_case.adapter_alphas, strict=True)
    for index, (name, alpha) in enumerate(pairs):
        adapter = described.get(name) or adapters[name]
        slots.append(Slot(index, name, start, adapter.rank, float(alpha), adapter.scale))
        start += -(-adapter.rank // multiple) * multiple
    return tuple(slots)
