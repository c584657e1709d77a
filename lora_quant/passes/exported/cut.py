"""Cutting the branches of one module into the ranks of adapters.

A [12, in], B [out, 12], scale [12]  ->  tone: A [4, in], B [out, 4]   legal: A [8, in], B [out, 8]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.branch_values import weight_values
from lora_quant.graph.exported.records import FoundBranch, FoundPoint
from lora_quant.passes.exported.branch_scales import scale_readings
from lora_quant.passes.exported.decide import Decision, Undecided, decide, whatever_it_holds
from lora_quant.passes.exported.factors import Factors
from lora_quant.passes.exported.known_adapters import KnownAdapters
from lora_quant.passes.exported.rank_fit import Fit
from lora_quant.passes.exported.readings import Owner
from lora_quant.passes.exported.refusals import (
    Place,
    differs,
    gained,
    grouped,
    none_fits,
    not_tried_out,
    several_fit,
)


@dataclass(frozen=True)
class Cut:
    """One module, decided, with its factors in memory: `factors` has one entry for each branch."""

    place: Place
    branches: tuple[FoundBranch, ...]
    factors: Sequence[Factors]
    decision: Decision

    def parts(self) -> Iterator[tuple[str, Factors]]:
        """Adapter and factors of every range of ranks; AdapterError for a B that is grouped."""
        return _parts(self.place, self.branches, self.factors, self.decision.fit)


def cut_module(
    place: Place,
    graph: BaseGraph,
    point: FoundPoint,
    owners: Sequence[Owner],
    known: KnownAdapters,
) -> Cut:
    """Decide whose the ranks of a point's branches are; `owners` can have some.

    Raises AdapterError if nothing fits, if several ways fit or cannot all be tried, or if values
    are not the known ones; GraphError for a base whose own product is scaled.
    """
    if point.linear.gain != 1.0:
        raise gained(place, point.linear)
    factors = [_factors(graph, branch) for branch in point.branches]
    readings = [
        scale_readings(graph, branch, _empty(pair))
        for branch, pair in zip(point.branches, factors, strict=True)
    ]

    def holds(owner: Owner, branch: int, begin: int) -> bool:
        part = _part(point.branches[branch], factors[branch], begin, owner.rank)
        return part is not None and known.holds(owner.adapter, place.module, part)

    decision = decide(readings, owners, holds)
    if isinstance(decision, Decision):
        return Cut(place, point.branches, factors, decision)
    if decision.fits:
        raise several_fit(place, decision.fits, owners, [ways[0] for ways in readings])
    if decision.is_open:
        raise not_tried_out(place, owners, [ways[0] for ways in readings])
    by_scale = decide(readings, owners, whatever_it_holds)
    fits = by_scale.fits if isinstance(by_scale, Undecided) else (by_scale.fit,)
    for fit in fits:
        for adapter, part in _parts(place, point.branches, factors, fit):
            if not known.holds(adapter, place.module, part):
                raise differs(place, adapter, part, known.factors(adapter))
    raise none_fits(place, owners, readings)


def _factors(graph: BaseGraph, branch: FoundBranch) -> Factors:
    """A `[R, in, *kernel]` and B `[out, R / groups]`."""
    a, b = weight_values(graph, branch.a), weight_values(graph, branch.b)
    return Factors(a, b.reshape(b.shape[:2]))


def _empty(pair: Factors) -> NDArray[np.bool_]:
    """Ranks without effect: a zero row of A, or a zero column of B unless that is grouped."""
    rank = pair.a.shape[0]
    rows = np.asarray(~pair.a.reshape(rank, -1).any(axis=1))
    columns = np.asarray(~pair.b.any(axis=0))
    return rows | columns if columns.size == rank else rows


def _parts(
    place: Place, branches: Sequence[FoundBranch], factors: Sequence[Factors], fit: Fit
) -> Iterator[tuple[str, Factors]]:
    for branch, pair, ranks in zip(branches, factors, fit.ranks, strict=True):
        for one in ranks:
            part = _part(branch, pair, one.begin, one.size)
            if part is None:
                raise grouped(place, one.adapter)
            yield one.adapter, part


def _part(branch: FoundBranch, pair: Factors, begin: int, size: int) -> Factors | None:
    """The factors of some ranks; None for a part of a branch whose B is grouped."""
    if pair.b.shape[1] == pair.a.shape[0]:
        ranks = slice(begin, begin + size)
        return Factors(pair.a[ranks], pair.b[:, ranks])
    return pair if size == branch.rank else None
