"""Which ranks of a branch belong to which adapter in a use case, and what was folded into B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.adapters.adapter import Adapter
from lora_quant.passes.compilation import Compilation


@dataclass(frozen=True)
class Contribution:
    """Ranks `[start, start + rank)` of one branch, filled by one module of one adapter.

    slot and part tell the adapter and the module of a fused projection. ratio: the module's own
    scale over the adapter's, which B carries. strength: what s holds here, alpha times the
    adapter's scale.
    """

    slot: int
    part: int
    start: int
    rank: int
    ratio: float
    strength: float


def contributions(
    compilation: Compilation, use_case: str
) -> Mapping[int, tuple[Contribution, ...]]:
    """Contributions by branch number, in the order of slots and parts; idle branches are absent."""
    adapters: Mapping[str, Adapter] = compilation.having("adapters")
    placements = compilation.having("resolution").placements
    max_rank = compilation.having("slots").max_rank
    found: dict[int, list[Contribution]] = {}
    for slot in compilation.having("slots").use_cases[use_case]:
        adapter = adapters[slot.adapter]
        for module, shape in adapter.shapes.items():
            place = placements[module]
            found.setdefault(place.point, []).append(
                Contribution(
                    slot=slot.index,
                    part=place.part,
                    start=place.part * max_rank + slot.start,
                    rank=shape.rank,
                    ratio=adapter.deviation(module),
                    strength=slot.alpha * slot.scale,
                )
            )
    return {
        point: tuple(sorted(items, key=lambda item: (item.slot, item.part)))
        for point, items in found.items()
    }
