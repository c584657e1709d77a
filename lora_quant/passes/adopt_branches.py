"""Pass: take over the branches of a final graph, in place of building some.

the given graph            ->  records of its branches, slots in its ranks
a use case's own graph     ->  the same graph, but for the values of its LoRA weights

Nothing is added to the graph. An adapter that is placed keeps the slot that it would have in a
graph of this tool's own: the same adapters give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_quant.errors import GraphError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.resolver import Placement, Resolution
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.exported.adopted import AdoptedGraph, adopt
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph, NearBranch
from lora_quant.graph.exported.same_graph import check_same_graph
from lora_quant.graph.exported.verbatim import VerbatimWeights
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.model_file import load_model
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.allocate_slots import negative_strengths
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import (
    ADAPTERS_LOWERED,
    BRANCHES_BUILT,
    MODULES_RESOLVED,
    SLOTS_ALLOCATED,
    WEIGHTS_CHOSEN,
)
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.final.placement import check_adapter, check_branches, check_use_case
from lora_quant.passes.final.records import GivenGraph, StrengthLayout
from lora_quant.passes.final.slots import final_slots
from lora_quant.passes.slots import SlotTable
from lora_quant.passes.stacking import check_stacking


@dataclass(frozen=True)
class AdoptBranches:
    """Reads the graph and compares those of the use cases with it; nothing is edited."""

    name: ClassVar[str] = "adopt-branches"
    requires: ClassVar[tuple[Condition, ...]] = (WEIGHTS_CHOSEN, MODULES_RESOLVED, ADAPTERS_LOWERED)
    ensures: ClassVar[tuple[Condition, ...]] = (BRANCHES_BUILT, SLOTS_ALLOCATED)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises GraphError for a graph without branches, and for a use case's that differs.

        Also for adapters that the branches have no exact place for; UnsupportedAdapterError for
        adapters that are more than low rank.
        """
        if compilation.branched is not None:
            return PassResult(compilation, changed=False)
        _check_stacking(compilation)
        exported = _recognised(compilation)
        resolution: Resolution = compilation.having("resolution")
        adopted = adopt(
            exported,
            {point.linear.product: point for point in resolution.points},
            max((len(u.adapter_names) for u in compilation.config.use_cases), default=0) or 1,
        )
        branched = adopted.branched
        data_files = _check_own_graphs(compilation, branched)
        slots = final_slots(compilation, branched)
        placed = _placed_in(compilation, resolution, exported, adopted, slots)
        given: GivenGraph = compilation.having("given")
        is_neutral = _is_neutral(compilation, adopted)
        given = replace(
            given,
            data_files=data_files,
            found=adopted.found,
            alpha_layout=_layout(branched, slots),
            is_neutral=is_neutral,
        )
        found = [] if is_neutral else [_not_neutral(compilation)]
        found += _near(compilation, exported.near)
        if branched.scale is not None:
            found += negative_strengths(slots.use_cases)
        found += _other_name(compilation, branched)
        result = replace(
            compilation, branched=branched, slots=slots, resolution=placed, given=given
        )
        return PassResult(result.with_findings(*found), changed=True)


def _check_stacking(compilation: Compilation) -> None:
    """What use cases may mix, of those whose adapters are placed."""
    config, stored = compilation.config, compilation.having("given").stored
    placed = [u for u in config.use_cases if u.name not in stored]
    check_stacking(replace(compilation, config=config.model_copy(update={"use_cases": placed})))


def _recognised(compilation: Compilation) -> ExportedGraph:
    exported = recognise_branches(compilation.base)
    if any(point.branches for point in exported.points):
        return exported
    raise GraphError(
        "the given graph is to be final, and no LoRA branch was found in it"
        + _nearest(exported.near),
        where=Where(file=compilation.base.path),
        hint="leave create_lora_graph at True to have branches added",
    )


def _nearest(near: Sequence[NearBranch]) -> str:
    """The first place that looks like a branch, as the end of a message."""
    return f"; {near[0].node!r} comes nearest: {near[0].reason}" if near else ""


def _check_own_graphs(
    compilation: Compilation, branched: BranchedGraph
) -> Mapping[str, tuple[DataFile, ...]]:
    """Hold every use case's own graph against the given one; returns their data files."""
    base = compilation.base
    names = frozenset(weight.record.name for weight in updatable_weights(branched))
    stored = compilation.having("given").stored
    own = {name: path for name, path in stored.items() if path != base.path}
    checked: dict[Path, tuple[DataFile, ...]] = {}
    for number, (use_case, path) in enumerate(own.items()):
        compilation.progress(f"graph of {use_case}", number, len(own))
        if path not in checked:
            try:
                model = load_model(path)
                check_same_graph(base.model, model, names)
            except GraphError as error:
                error.where = replace(error.where, use_case=use_case)
                raise
            checked[path] = model.data_files
    return {name: checked[path] for name, path in own.items()}


def _placed_in(
    compilation: Compilation,
    resolution: Resolution,
    exported: ExportedGraph,
    adopted: AdoptedGraph,
    slots: SlotTable,
) -> Resolution:
    """Where adapters go, by the attach points of the graph's own branches; GraphError if nowhere.

    The same places in a graph that adapters are not placed into.
    """
    adapters = compilation.having("adapters")
    branched = adopted.branched
    numbers = {branch.attach.linear.product: n for n, branch in enumerate(branched.branches)}
    if adapters:
        check_branches(compilation.base, adopted)
    points: dict[tuple[str, str], str] = {}
    placements: dict[str, Placement] = {}
    for adapter in adapters.values():
        check_adapter(adapter)
        for module in adapter.shapes:
            place = resolution.placements[module]
            point = resolution.points[place.point]
            number = numbers.get(point.linear.product)
            if number is None:
                raise GraphError(
                    f"module {module!r} of adapter {adapter.name!r} has no branch in the given "
                    f"graph{_nearest(exported.near)}",
                    where=Where(file=compilation.base.path, adapter=adapter.name, module=module),
                    hint="build a graph with a branch there, from the base graph",
                )
            placements[module] = Placement(number, place.part)
            points[adapter.name, module] = branched.points[number].name
    stored = compilation.having("given").stored
    for name, owned in slots.use_cases.items():
        if name not in stored:
            check_use_case(compilation.base, adopted, adapters, points, name, owned)
    return Resolution(branched.points, placements, resolution.sizes)


def _layout(branched: BranchedGraph, slots: SlotTable) -> StrengthLayout:
    scale = branched.scale
    if scale is None or scale.expansion is not None:
        return "slot"
    if math.prod(scale.alpha.shape) > 1:
        return "rank"
    return "one" if any(len(owned) > 1 for owned in slots.use_cases.values()) else "slot"


def _is_neutral(compilation: Compilation, adopted: AdoptedGraph) -> bool:
    """Whether every branch has a factor, or a scale, that is zero."""
    weights = VerbatimWeights(compilation.base.model)
    branched = adopted.branched
    scale = branched.scale
    if scale is not None and scale.expansion is not None and weights.is_zero(scale.expansion):
        return True
    off = {
        name
        for one in branched.constant_scales
        if weights.is_zero(one.weight)
        for name in one.branches
    }
    return all(
        branch.attach.name in off
        or weights.is_zero(branch.b_weight)
        or weights.is_zero(branch.a_weight)
        for branch in branched.branches
    )


def _near(compilation: Compilation, near: Sequence[NearBranch]) -> list[Finding]:
    if not near:
        return []
    first = near[0]
    return [
        Finding(
            rule="graph/near-branch",
            severity=Severity.WARNING,
            message=f"{len(near)} places look like a branch and were not taken as one; "
            f"the first is {first.node!r}: {first.reason}",
            where=Where(file=compilation.base.path, node=first.node),
            hint="their weights stay as they are in the given graph",
        )
    ]


def _not_neutral(compilation: Compilation) -> Finding:
    """A use case without adapters has the weights of the given graph: then it is not the base."""
    plain = [one.name for one in compilation.config.use_cases if not one.adapter_names]
    meant = f", also in use case {some(plain)}, which names no adapters" if plain else ""
    return Finding(
        rule="graph/not-neutral",
        severity=Severity.WARNING if plain else Severity.NOTE,
        message="the given graph is not neutral: as it is, its branches change what the base "
        f"computes{meant}",
        where=Where(file=compilation.base.path),
        hint="a use case without adapters has the weights of the given graph; give a graph whose "
        "B are zero for the base alone",
    )


def _other_name(compilation: Compilation, branched: BranchedGraph) -> list[Finding]:
    """The strengths have the name that the graph gives them, whatever was asked for."""
    wanted, scale = compilation.options.alpha_name, branched.scale
    if scale is None or scale.alpha.name == wanted:
        return []
    return [
        Finding(
            rule="graph/alpha-name",
            severity=Severity.NOTE,
            message=f"the given graph calls its input for strengths {scale.alpha.name!r}, not "
            f"{wanted!r}",
            where=Where(file=compilation.base.path),
        )
    ]
