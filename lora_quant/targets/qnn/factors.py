"""The factors of one branch, brought onto constant grids.

    l = B (s * (A x)) = B' (alpha * ratio * (A' x))

    A' = A / p    B' = B * scale * p / ratio    ratio >= |scale| * p * q    per rank

p is the largest |A| of a rank and q the largest |B|, so that the values of A' and B' are within
[-1, 1] whatever their magnitude was, and fill a grid from -1 to 1. ratio is rounded up to its own
grid: it is stored exactly, and B' makes up for it. a' = a / p, and m' = m * ratio / (|scale| * p).

A rank that is weaker than others of its module takes more of the range of a' than it needs: the
calibrated range of a tells of the strongest rank alone. So p is not below `floor` times the largest
p of the module, where floor is what the grid of a' can spare; see `spare_range`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.branching.points import rank_axis
from lora_quant.graph.records import Branch
from lora_quant.passes.slots import Slot
from lora_quant.passes.weight_values import Values

FloatArray = NDArray[np.float64]

_MARGIN_BITS = 2


@dataclass(frozen=True, eq=False)
class RankMagnitudes:
    """p, q and |scale| `[parts * R]` of one branch in one use case; 0 for ranks that are empty."""

    a: FloatArray
    b: FloatArray
    scale: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """The least ratio of each rank."""
        return np.abs(self.scale) * self.a * self.b

    @property
    def is_empty(self) -> bool:
        """Whether no rank adds anything."""
        return not self.ratio.any()


def spare_range(activation_bits: int, weight_bits: int) -> float:
    """How much weaker a rank may be, next to the strongest of its module, to fill A's grid alone.

    Rounding A to n bits puts an error of about 2**-n of its largest value on a; a grid of a' that
    is 2**k times too wide one of 2**(k - bits). Two bits stay between them: k = bits - n - 2.
    """
    return float(2.0 ** min(0, weight_bits + _MARGIN_BITS - activation_bits))


def magnitudes(
    branch: Branch,
    values: Mapping[str, Values],
    slots: Sequence[Slot],
    *,
    floor: float,
    with_scale: bool,
) -> RankMagnitudes:
    """Those of one attach point. `with_scale`: ratio carries the adapters' scale, not alpha."""
    a = _largest(values[branch.a_weight.name], rank_axis(branch.attach, is_a=True))
    b = _largest(values[branch.b_weight.name], rank_axis(branch.attach, is_a=False))
    per_part = a.size // len(branch.attach.parts)
    scale = np.zeros(per_part)
    for slot in slots:
        scale[slot.start : slot.start + slot.rank] = slot.scale if with_scale else 1.0
    strongest = float(a.max(initial=0.0))
    p = np.where(a > 0, np.maximum(a, floor * strongest), 0.0)
    return RankMagnitudes(p, b, np.tile(scale, len(branch.attach.parts)))


def normalised_a(branch: Branch, values: Values, found: RankMagnitudes) -> FloatArray:
    """A' in the shape of A."""
    inverse = np.divide(1.0, found.a, out=np.zeros_like(found.a), where=found.a > 0)
    return values.astype(np.float64) * _along(
        inverse, rank_axis(branch.attach, is_a=True), values.ndim
    )


def normalised_b(
    branch: Branch, values: Values, found: RankMagnitudes, ratio: FloatArray
) -> FloatArray:
    """B' in the shape of B; `ratio` `[parts * R]` is what is stored, not below the least one."""
    factor = np.divide(found.scale * found.a, ratio, out=np.zeros_like(ratio), where=ratio > 0)
    return values.astype(np.float64) * _along(
        factor, rank_axis(branch.attach, is_a=False), values.ndim
    )


def _largest(values: Values, axis: int) -> FloatArray:
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest: FloatArray = np.abs(values.astype(np.float64)).max(axis=others)
    return largest


def _along(factor: FloatArray, axis: int, ndim: int) -> FloatArray:
    shape = [1] * ndim
    shape[axis] = -1
    return factor.reshape(shape)
