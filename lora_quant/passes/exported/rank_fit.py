"""Which ranks of a module's branches can be whose: every arrangement that fits.

    ranks 0 1 2 3 4 5 6 7 8 9 10 11      tone: rank 4, factor 2     legal: rank 8, factor 3
    scale 2 2 2 2 3 3 3 3 3 3  3  3   -> tone 0-3, legal 4-11
    scale 3 3 3 3 3 3 3 3 0 0  0  0   -> legal 0-7, tone not at this module, padding

An adapter's ranks lie side by side in one branch. Ranks of nobody have no effect: they lie at the
end of a branch, or, where `gaps` allows it, between adapters as well.

Ways multiply with every adapter that looks like another one: what is tried has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from lora_quant.passes.exported.readings import Law, Owner, RankScales
from lora_quant.passes.exported.records import AdapterRanks

# whether an adapter whose factors are known has them at these ranks: branch, first rank
Holds = Callable[[Owner, int, int], bool]

# Some tenths of a second; a module with less than ten adapters takes far less.
_MOST_TRIED = 20_000
# Each is a level of recursion, of which Python has a thousand.
_MOST_PARTS = 256


class TooManyWaysError(Exception):
    """More would have to be tried than one module is worth."""


class Effort:
    """How much may still be tried at one module."""

    def __init__(self, most: int = _MOST_TRIED) -> None:
        self._left = most

    def spend(self, count: int = 1) -> None:
        """Raises TooManyWaysError once nothing is left."""
        self._left -= count
        if self._left < 0:
            raise TooManyWaysError


@dataclass(frozen=True)
class Fit:
    """One arrangement: the ranges of each branch, and by which laws each adapter fits."""

    ranks: tuple[tuple[AdapterRanks, ...], ...]
    laws: Mapping[str, frozenset[Law]]

    @property
    def order(self) -> tuple[str, ...]:
        """The adapters in the order of the ranks."""
        return tuple(one.adapter for branch in self.ranks for one in branch)


def arrangements(
    branches: Sequence[RankScales],
    owners: Sequence[Owner],
    holds: Holds,
    *,
    gaps: bool,
    effort: Effort | None = None,
) -> Iterator[Fit]:
    """All arrangements in which every owner has ranks, those in the given order first.

    Raises TooManyWaysError where they cannot be tried within `effort`.
    """
    effort = effort or Effort()
    effort.spend()
    if not _adds_up(branches, owners):
        return
    if len(branches) + len(owners) > _MOST_PARTS:
        raise TooManyWaysError
    dead: set[tuple[int, int, frozenset[str]]] = set()

    def place(
        branch: int, at: int, left: tuple[Owner, ...], taken: tuple[tuple[int, int, Owner], ...]
    ) -> Iterator[Fit]:
        if branch == len(branches):
            if not left:
                yield _fit(branches, taken)
            return
        names = frozenset(owner.adapter for owner in left)
        scales = branches[branch]
        passed = []
        while (branch, at, names) not in dead:
            passed.append((branch, at, names))
            found = False
            for number, owner in enumerate(left):
                effort.spend()
                if scales.fitting(owner, at) and holds(owner, branch, at):
                    rest = left[:number] + left[number + 1 :]
                    here = (*taken, (branch, at, owner))
                    for fit in place(branch, at + owner.rank, rest, here):
                        found = True
                        yield fit
            if not found and scales.adds_nothing(at):
                for fit in place(branch + 1, 0, left, taken):
                    found = True
                    yield fit
            if found:
                return
            if not gaps or not _is_idle(scales, at):
                break
            at += 1
        dead.update(passed)

    yield from place(0, 0, tuple(owners), ())


def smaller_fits(
    branches: Sequence[RankScales],
    owners: Sequence[Owner],
    holds: Holds,
    *,
    gaps: bool,
    effort: Effort | None = None,
) -> Iterator[Fit]:
    """Arrangements of some of the owners, larger choices first.

    Those without an owner that is known to have ranks only where no other one fits. For each choice
    the one in the given order, or else up to two. Raises TooManyWaysError as `arrangements` does.
    """
    effort = effort or Effort()
    known = [owner for owner in owners if owner.is_known]
    fitted = False
    for with_known in (True, False) if known else (True,):
        for count in range(len(owners) - 1, -1, -1):
            for chosen in combinations(owners, count):
                effort.spend()
                if all(owner in chosen for owner in known) is not with_known:
                    continue
                ways = arrangements(branches, chosen, holds, gaps=gaps, effort=effort)
                fits = tuple(islice(ways, 2))
                is_listed = fits and fits[0].order == tuple(owner.adapter for owner in chosen)
                fitted = fitted or bool(fits)
                yield from fits[:1] if is_listed else fits
        if fitted:
            return


def _adds_up(branches: Sequence[RankScales], owners: Sequence[Owner]) -> bool:
    """Whether the ranks of the owners, and those without effect, can be all that there are."""
    wanted = sum(owner.rank for owner in owners)
    total = sum(scales.rank for scales in branches)
    return total - sum(int(scales.idle.sum()) for scales in branches) <= wanted <= total


def _is_idle(scales: RankScales, at: int) -> bool:
    return at < scales.rank and bool(scales.idle[at])


def _fit(branches: Sequence[RankScales], taken: Sequence[tuple[int, int, Owner]]) -> Fit:
    ranks: list[list[AdapterRanks]] = [[] for _ in branches]
    laws = {}
    for branch, begin, owner in taken:
        ranks[branch].append(AdapterRanks(owner.adapter, begin, owner.rank))
        laws[owner.adapter] = branches[branch].fitting(owner, begin)
    return Fit(tuple(map(tuple, ranks)), laws)
