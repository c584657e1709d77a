"""Deciding whose ranks the branches of one module hold, out of what fits.

all adapters of the use case that can be at the module, in its order      that is it
exactly one other way                                                     that, with a remark
several ways that fit equally                                             refused, unless one is
                                                                          the order of the use case

An adapter with the strength 0 fits any ranks of factor 0, those of padding as well. So ranks that
hold values are somebody's at first, and nobody's only where nothing fits otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice

from lora_quant.passes.exported.rank_fit import (
    Effort,
    Fit,
    Holds,
    TooManyWaysError,
    arrangements,
    smaller_fits,
)
from lora_quant.passes.exported.readings import Owner, RankScales


class Remark(Enum):
    """What a person should know of a decision, in the order of the evidence that is missing."""

    ORDER_ASSUMED = "rank-order-assumed"
    OTHER_ORDER = "other-rank-order"
    NOT_ALL = "adapter-without-ranks"


@dataclass(frozen=True)
class Decision:
    """The arrangement that was taken. `is_told` is False where no constant of the graph tells the
    factor of its ranks.
    """

    fit: Fit
    is_told: bool = True
    remark: Remark | None = None


@dataclass(frozen=True)
class Undecided:
    """Several arrangements fit equally; none if there are none.

    With `is_open`, there are too many ways to try them all.
    """

    fits: tuple[Fit, ...]
    is_open: bool = False


def decide(
    readings: Sequence[tuple[RankScales, ...]], owners: Sequence[Owner], holds: Holds
) -> Decision | Undecided:
    """`readings`: the ways to read each branch of the module, see scale_readings."""
    effort = Effort()
    try:
        if any(owner.strength == 0 for owner in owners):
            strict = [tuple(replace(one, is_strict=True) for one in ways) for ways in readings]
            decided = _decide(strict, owners, holds, effort)
            if isinstance(decided, Decision) or decided.fits:
                return decided
        return _decide(readings, owners, holds, effort)
    except TooManyWaysError:
        return Undecided((), is_open=True)


def _decide(
    readings: Sequence[tuple[RankScales, ...]],
    owners: Sequence[Owner],
    holds: Holds,
    effort: Effort,
) -> Decision | Undecided:
    for gaps in (False, True):
        for branches in _in_turn(readings):
            is_told = all(branch.scale is not None for branch in branches)
            ways = arrangements(branches, owners, holds, gaps=gaps, effort=effort)
            fits = tuple(islice(ways, 2))
            if fits:
                return _of_all(fits, owners, is_told)
        for branches in _in_turn(readings):
            is_told = all(branch.scale is not None for branch in branches)
            ways = smaller_fits(branches, owners, holds, gaps=gaps, effort=effort)
            smaller = tuple(islice(ways, 3))
            if smaller:
                remark = Remark.NOT_ALL if owners else None
                one = len(smaller) == 1
                return Decision(smaller[0], is_told, remark) if one else Undecided(smaller)
    return Undecided(())


def whatever_it_holds(owner: Owner, branch: int, begin: int) -> bool:
    """For `holds` of `decide`: ranks and scales alone decide, no factors."""
    del owner, branch, begin
    return True


def _of_all(fits: tuple[Fit, ...], owners: Sequence[Owner], is_told: bool) -> Decision | Undecided:
    is_listed = fits[0].order == tuple(owner.adapter for owner in owners)
    if is_listed:
        return Decision(fits[0], is_told, Remark.ORDER_ASSUMED if len(fits) > 1 else None)
    return Decision(fits[0], is_told, Remark.OTHER_ORDER) if len(fits) == 1 else Undecided(fits)


def _in_turn(readings: Sequence[tuple[RankScales, ...]]) -> Iterator[tuple[RankScales, ...]]:
    """All branches by their first reading, then by their second: they are of one exporter."""
    most = max((len(ways) for ways in readings), default=1)
    for number in range(most):
        yield tuple(ways[min(number, len(ways) - 1)] for ways in readings)
