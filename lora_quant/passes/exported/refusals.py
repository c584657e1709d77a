"""Why the ranks of a module cannot be given to adapters: the one thing to mend, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from lora_quant.errors import AdapterError, GraphError, Where
from lora_quant.graph.records import LinearNode
from lora_quant.passes.exported.decide import Decision, decide, whatever_it_holds
from lora_quant.passes.exported.factors import Factors, KnownFactors, distance, same
from lora_quant.passes.exported.rank_fit import Fit
from lora_quant.passes.exported.readings import FloatArray, Law, Owner, RankScales
from lora_quant.passes.exported.records import AdapterRanks


@dataclass(frozen=True)
class Place:
    """The module that is read, and where."""

    graph: Path
    use_case: str
    module: str

    def where(self, adapter: str | None = None) -> Where:
        """For an error."""
        return Where(file=self.graph, use_case=self.use_case, adapter=adapter, module=self.module)


def several_fit(
    place: Place, fits: Sequence[Fit], owners: Sequence[Owner], branches: Sequence[RankScales]
) -> AdapterError:
    """Nothing tells which arrangement is meant."""
    listed = "; or ".join(_arranged(fit) for fit in fits)
    return AdapterError(
        f"the ranks of module {place.module!r} can be whose they are in several ways: {listed}. "
        f"{_expected(owners)}; the graph has {_found(branches)}",
        where=place.where(),
        hint="add a use case with one of the adapters alone and its own graph: equal values then "
        "decide; or list for each adapter the modules that it has, in target_modules",
    )


def not_tried_out(
    place: Place, owners: Sequence[Owner], branches: Sequence[RankScales]
) -> AdapterError:
    """The adapters do not fit in their order, and there are too many other ways."""
    return AdapterError(
        f"the ranks of module {place.module!r} are not those of the {len(owners)} adapters in the "
        "order of the use case, and there are too many other ways to try them all: "
        f"{_expected(owners)}; the graph has {_found(branches)}",
        where=place.where(),
        hint="correct rank and alpha of the adapters, and list for each of them the modules that "
        "it has, in target_modules: what fits in the order of adapter_names is found at once",
    )


def none_fits(
    place: Place, owners: Sequence[Owner], readings: Sequence[tuple[RankScales, ...]]
) -> AdapterError:
    """Ranks or scales that contradict the descriptions."""
    branches = [ways[0] for ways in readings]
    if not owners:
        return AdapterError(
            f"the graph has a branch at module {place.module!r}, which no adapter of the use case "
            "targets",
            where=place.where(),
            hint="add the module to target_modules of its adapter, or the adapter to "
            "adapter_names; if it goes by another name, say so in `attach_point_onnx_mapping`",
        )
    by_rank = decide([(replace(one, scale=None),) for one in branches], owners, whatever_it_holds)
    if not isinstance(by_rank, Decision) or not by_rank.fit.order:
        return AdapterError(
            f"the ranks of module {place.module!r} do not add up: {_expected(owners)}; the graph "
            f"has {_found(branches)}",
            where=place.where(),
            hint="correct rank and target_modules in the descriptions of the adapters; what is "
            "beyond them has to be zero",
        )
    by_name = {owner.adapter: owner for owner in owners}
    for scales, ranges in zip(branches, by_rank.fit.ranks, strict=True):
        for one in ranges:
            owner = by_name[one.adapter]
            if scales.scale is not None and not scales.fitting(owner, one.begin):
                got = scales.scale[one.begin : one.begin + one.size]
                return _wrong_scale(place, owner, one, scales, got)
    return several_fit(place, [by_rank.fit], owners, branches)


def grouped(place: Place, adapter: str) -> AdapterError:
    """B of several groups is cut along other lines than ranks."""
    return AdapterError(
        f"B of module {place.module!r} is grouped and holds the ranks of several adapters, or "
        "padding",
        where=place.where(adapter),
        hint="export the adapters of grouped convolutions in branches of their own",
    )


def gained(place: Place, linear: LinearNode) -> GraphError:
    """The base's own product is scaled, and the branches beside it are not."""
    return GraphError(
        f"the base's own node of module {place.module!r} is a Gemm with alpha {linear.gain:g}, "
        "expected 1: a factor of the base alone is not part of what its branches add",
        where=replace(place.where(), node=linear.node or linear.product),
        hint="export base and use cases with that alpha multiplied into the base's weight",
    )


def differs(place: Place, adapter: str, part: Factors, known: KnownFactors) -> AdapterError:
    """Two places hold other values for one adapter."""
    expected = known.factors(place.module, part)
    letter, got, wanted = next(
        (letter, one, other)
        for letter, one, other in (("A", part.a, expected.a), ("B", part.b, expected.b))
        if not same(one, other)
    )
    if got.dtype != wanted.dtype:
        how = f"it is {got.dtype} in the one and {wanted.dtype} in the other"
    else:
        largest = distance(got, wanted)
        how = "their shapes differ" if largest is None else f"by up to {largest:.3g}"
    return AdapterError(
        f"lora_{letter} of adapter {adapter!r} at module {place.module!r} differs between the "
        f"graph of use case {place.use_case!r} and {known.source}: {how}",
        where=place.where(adapter),
        hint="an adapter is the same in all use cases: export both from one checkpoint, or name "
        "them as two adapters",
    )


def _wrong_scale(
    place: Place, owner: Owner, ranks: AdapterRanks, scales: RankScales, got: FloatArray
) -> AdapterError:
    name, strength = owner.adapter, owner.strength
    law = min(owner.laws, key=lambda one: one is not Law.LORA)
    scale = owner.laws[law]
    full = scale * strength
    where = place.where(name)
    found = _values(got)
    span = f"ranks {ranks.begin} to {ranks.begin + ranks.size - 1} of module {place.module!r}"
    if strength != 1 and not scales.at_run_time and scales.close(got, scale):
        return AdapterError(
            f"the graph scales {span} by {found}, which is {law.value} of adapter {name!r} without "
            f"its strength {strength:g} in the use case",
            where=where,
            hint=f"set its strength in adapter_alphas to 1, as it was exported; or export the use "
            f"case with the scale {full:g}",
        )
    if scales.close(got, 1.0):
        return AdapterError(
            f"the graph scales {span} by 1, and {law.value} times the strength of adapter {name!r} "
            f"is {scale:g} * {strength:g} = {full:g}: the scale seems to be in the weights",
            where=where,
            hint="export the branches with the scale apart from A and B (a mix that PEFT made with "
            "add_weighted_adapter has it inside), or set alpha to the rank and the strength to 1 "
            "if it is meant as it is; if the scale is 1 for real, correct alpha, rank or "
            "adapter_alphas",
        )
    others = [one for one in Law if one not in owner.laws]
    earlier = ""
    if len(owner.laws) == 1 and others:
        earlier = f" (that it is {law.value}, its description says or what was read before)"
    expected = " or ".join(
        dict.fromkeys(f"{factor:g}" for one in owner.laws for factor in scales.factors(owner, one))
    )
    return AdapterError(
        f"the graph scales {span} by {found}, expected {expected} for adapter {name!r}: "
        f"{law.value} = {scale:g}, strength {strength:g}{earlier}",
        where=where,
        hint="correct alpha or rank in the adapter's description, or adapter_alphas of the use "
        f"case{' or of one before it' if earlier else ''}; they have to be those that the graphs "
        "were exported with",
    )


def _values(got: FloatArray) -> str:
    low, high = float(np.min(got)), float(np.max(got))
    return f"{low:.7g}" if low == high else f"{low:.7g} to {high:.7g}"


def _expected(owners: Sequence[Owner]) -> str:
    if not owners:
        return "no adapter is expected there"
    listed = ", ".join(
        f"{owner.adapter!r} rank {owner.rank}, scale "
        + " or ".join(dict.fromkeys(f"{v * owner.strength:g}" for v in owner.laws.values()))
        for owner in owners
    )
    return f"expected {listed}"


def _found(branches: Sequence[RankScales]) -> str:
    return " and ".join(
        f"rank {one.rank}" + ("" if one.scale is None else f", scale {_runs(one.scale)}")
        for one in branches
    )


def _runs(scale: FloatArray) -> str:
    """Equal values side by side, once: 2 (4 ranks), 3 (8 ranks)."""
    starts = [0, *(np.flatnonzero(np.diff(scale)) + 1).tolist(), scale.size]
    runs = [(scale[a], b - a) for a, b in pairwise(starts)]
    shown = ", ".join(f"{value:.7g} ({count} ranks)" for value, count in runs[:4])
    return shown + (", ..." if len(runs) > 4 else "")


def _arranged(fit: Fit) -> str:
    return ", ".join(
        f"{one.adapter!r} {one.begin}-{one.begin + one.size - 1}"
        for branch in fit.ranks
        for one in branch
    )
