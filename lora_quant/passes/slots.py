"""Slots: the fixed rank range that an adapter owns at every attach point of a use case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """Ranks `[start, start + rank)` of one adapter in one use case.

    alpha: the user's strength, 1 is as trained. scale: the adapter-wide factor (lora_alpha / rank,
    or lora_alpha / sqrt(rank)) that E carries.
    """

    index: int
    adapter: str
    start: int
    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class SlotTable:
    """Max rank R, number of slots S, and the slots of every use case in order."""

    max_rank: int
    slot_count: int
    use_cases: Mapping[str, tuple[Slot, ...]]

    def alphas(self, use_case: str) -> tuple[float, ...]:
        """The strengths of a use case, one per slot of the graph; unused slots are 0."""
        values = [0.0] * self.slot_count
        for slot in self.use_cases[use_case]:
            values[slot.index] = slot.alpha
        return tuple(values)
