"""What the scale constant of an exported branch can hold, and which of it an adapter's ranks fit.

lora_alpha / r * strength                 the one factor of a use case that is exported as it is
lora_alpha / r                            with a strength that an input brings at run time
lora_alpha / sqrt(r), with or without     rsLoRA, which the adapter JSON cannot tell
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Law(Enum):
    """How training scaled an adapter."""

    LORA = "lora_alpha / r"
    RSLORA = "lora_alpha / sqrt(r)"


@dataclass(frozen=True)
class Owner:
    """An adapter that may own ranks at one module, as its description and the use case say.

    `laws`: what the scale can be, by law; one where it is known. `slot`: its place in the use case.
    `is_known`: its factors are known, and it has some at this module.
    """

    adapter: str
    rank: int
    laws: dict[Law, float]
    strength: float
    slot: int
    is_known: bool = False


@dataclass(frozen=True, eq=False)
class RankScales:
    """What the ranks of one branch are multiplied by, `[rank]`; None if no constant tells.

    `empty`: ranks whose row of A or column of B is zero. `at_run_time`: an input multiplies as
    well, and may bring the strength. `slots`: the slot of each rank (-1: of none) where the graph
    tells it. `tolerance` (relative) and `floor` (absolute): what the roundings of the constants to
    their type can amount to. `is_strict`: a factor of 0 alone does not make a rank nobody's.
    """

    scale: FloatArray | None
    empty: NDArray[np.bool_]
    at_run_time: bool = False
    slots: NDArray[np.intp] | None = None
    tolerance: float = 0.0
    floor: float = 0.0
    is_strict: bool = False

    @property
    def rank(self) -> int:
        """Number of ranks, those of padding included."""
        return int(self.empty.size)

    @property
    def idle(self) -> NDArray[np.bool_]:
        """Ranks that can be nobody's: they add nothing, whatever is fed."""
        if self.scale is None or self.at_run_time or self.is_strict:
            return self.empty
        return np.asarray(self.empty | (self.scale == 0))

    def adds_nothing(self, begin: int) -> bool:
        """Whether all ranks from `begin` on are without effect."""
        return bool(self.idle[begin:].all())

    def fitting(self, owner: Owner, begin: int) -> frozenset[Law]:
        """By which laws the ranks from `begin` on can be the owner's; none if they cannot."""
        end = begin + owner.rank
        if end > self.rank:
            return frozenset()
        if self.slots is not None and not (self.slots[begin:end] == owner.slot).all():
            return frozenset()
        if self.scale is None:
            return frozenset(owner.laws)
        got = self.scale[begin:end]
        return frozenset(law for law in owner.laws if self._is(got, owner, law))

    def _is(self, got: FloatArray, owner: Owner, law: Law) -> bool:
        return any(self.close(got, factor) for factor in self.factors(owner, law))

    def factors(self, owner: Owner, law: Law) -> tuple[float, ...]:
        """The factors that the owner's ranks can have here."""
        full = owner.laws[law] * owner.strength
        return (full, owner.laws[law]) if self.at_run_time else (full,)

    def close(self, got: FloatArray, factor: float) -> bool:
        """Whether all of `got` are `factor`, but for rounding."""
        return bool(np.all(np.abs(got - factor) <= self.tolerance * math.fabs(factor) + self.floor))
