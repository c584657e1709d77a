"""What each adapter brings to an attach point in a use case: ranks of its branch, and vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.adapters.adapter import Adapter
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.records import Vector
from lora_quant.passes.compilation import Compilation

# The kinds whose A and B are compiled as they are trained, with one scale for all ranks. Of others,
# the factors of a foreign graph are not those of ours.
_PLAIN_KINDS = frozenset({"LORA"})


@dataclass(frozen=True)
class Contribution:
    """Ranks `[start, start + rank)` of one branch, filled by one module of one adapter.

    slot and part tell the adapter and the module of a fused projection. ratio: the module's own
    scale over the adapter's, which B carries; None where A and B are not the trained ones, or s
    differs from rank to rank. strength: what s holds here, alpha times the adapter's scale.
    is_gained: B carries a g as well, the adapter's own or that of one that acts later.
    """

    slot: int
    part: int
    start: int
    rank: int
    ratio: float | None
    strength: float
    is_gained: bool = False
    experts: int = 0


def contributions(
    compilation: Compilation, use_case: str
) -> Mapping[str, tuple[Contribution, ...]]:
    """Contributions by attach point, in the order of slots and parts; idle branches are absent."""
    adapters: Mapping[str, Adapter] = compilation.having("adapters")
    resolution: Resolution = compilation.having("resolution")
    max_rank = compilation.having("slots").max_rank
    found: dict[str, list[Contribution]] = defaultdict(list)
    gained: set[tuple[int, int]] = set()
    # From the last adapter on, so that what acts later is known.
    for slot in reversed(compilation.having("slots").use_cases[use_case]):
        adapter = adapters[slot.adapter]
        for module, shape in adapter.shapes.items():
            place = resolution.placements[module]
            if "g" in shape.vectors:
                gained.add((place.point, place.part))
            if not shape.rank:
                continue
            found[resolution.points[place.point].name].append(
                Contribution(
                    slot=slot.index,
                    part=place.part,
                    start=place.part * max_rank + slot.start,
                    rank=shape.rank,
                    ratio=adapter.deviation(module) if _is_plain(adapter, module) else None,
                    strength=slot.alpha * slot.scale,
                    is_gained=(place.point, place.part) in gained,
                    experts=shape.experts,
                )
            )
    return {
        point: tuple(sorted(items, key=lambda item: (item.slot, item.part)))
        for point, items in found.items()
    }


def active_vectors(
    compilation: Compilation, use_case: str
) -> Mapping[tuple[str, Vector], frozenset[int]]:
    """Attach point and vector -> the parts of the point whose modules bring that vector."""
    adapters: Mapping[str, Adapter] = compilation.having("adapters")
    resolution: Resolution = compilation.having("resolution")
    found: dict[tuple[str, Vector], set[int]] = defaultdict(set)
    for slot in compilation.having("slots").use_cases[use_case]:
        for module, shape in adapters[slot.adapter].shapes.items():
            place = resolution.placements[module]
            for vector in shape.vectors:
                found[resolution.points[place.point].name, Vector(vector)].add(place.part)
    return {key: frozenset(parts) for key, parts in found.items()}


def _is_plain(adapter: Adapter, module: str) -> bool:
    """Whether the module's factors are the trained ones: neither computed nor changed."""
    is_computed = adapter.stored is not None and module in adapter.stored
    return adapter.checkpoint.config.peft_type in _PLAIN_KINDS and not is_computed
