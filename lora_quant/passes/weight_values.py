"""The values of every updatable weight for one use case, one attach point in memory at a time.

    y = g * (W (h * x) + b) + B (s * (A x)) + c

An attach point that no adapter of the use case adapts gets zeros for A, B and c, and ones for g and
h. Where several adapters meet, low rank and c add up, and what scales the output scales everything
that was there before: see lora_quant.passes.stacking. A use case of a final graph may have a graph
of its own: then values are those of that file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.lowered import Dense
from lora_quant.graph.branching.router import expert_columns
from lora_quant.graph.branching.updatable_weights import Role, UpdatableWeight, updatable_weights
from lora_quant.graph.exported.verbatim import VerbatimWeights
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.graph.records import AttachPoint, Branch, BranchedGraph, TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.factors import PlacedModule, cast_to, expansion_matrix, place
from lora_quant.passes.final.placement import placed_scales
from lora_quant.passes.modules_by_point import ModulesByPoint, UseCaseModule
from lora_quant.passes.replacements import replaced_values

Values = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class PointValues:
    """Values of all updatable weights of one attach point, by tensor name, in their order."""

    point: AttachPoint
    branch: Branch | None
    values: Mapping[str, Values]


def use_case_weights(compilation: Compilation, use_case: str) -> Iterator[PointValues]:
    """Values of every attach point, in the order of lora_quant.graph.branching.updatable_weights.

    Raises AdapterError for values that the graph's dtype cannot hold.
    """
    own = _own_graph(compilation, use_case)
    if own is not None:
        for branch in compilation.having("branched").branches:
            records = (branch.a_weight, branch.b_weight)
            yield PointValues(branch.attach, branch, {r.name: own.read(r) for r in records})
        return
    modules_by_point = ModulesByPoint(compilation, use_case)
    branched: BranchedGraph = compilation.having("branched")
    weights: dict[str, list[UpdatableWeight]] = defaultdict(list)
    for weight in updatable_weights(branched):
        if weight.attach is not None:
            weights[weight.attach.name].append(weight)
    branches = {branch.attach.name: branch for branch in branched.branches}
    for number, point in enumerate(branched.points):
        branch = branches.get(point.name)
        modules = _placed(modules_by_point.at(number))
        yield PointValues(
            point, branch, _point_values(weights[point.name], branch, modules, branched)
        )


def shared_weights(
    compilation: Compilation, use_case: str
) -> Iterator[tuple[TensorRecord, Values]]:
    """E, scales and replaced parameters: what belongs to no attach point, in their order."""
    slots = compilation.having("slots").use_cases[use_case]
    branched: BranchedGraph = compilation.having("branched")
    own = _own_graph(compilation, use_case)
    if own is not None:
        shared = (weight for weight in updatable_weights(branched) if weight.attach is None)
        yield from ((weight.record, own.read(weight.record)) for weight in shared)
        return
    if branched.scale is not None and branched.scale.expansion is not None:
        yield branched.scale.expansion, expansion_matrix(branched.scale.expansion, slots)
    yield from ((one.weight, values) for one, values in placed_scales(branched, slots))
    adapters = {slot.adapter: compilation.having("adapters")[slot.adapter] for slot in slots}
    owners = {r.target.weight.name: r for r in compilation.replacements if r.adapter in adapters}
    for one in branched.replaced:
        owner = owners.get(one.weight.name)
        adapter = None if owner is None else adapters[owner.adapter]
        shape = None if owner is None else owner.shape
        yield one.weight, replaced_values(compilation.base, one, adapter, shape)


def _own_graph(compilation: Compilation, use_case: str) -> VerbatimWeights | None:
    """The graph that holds the values of a use case; None if they come from adapters."""
    given = compilation.given
    path = None if given is None else given.stored.get(use_case)
    if given is None or path is None:
        return None
    if path == compilation.base.path:
        return VerbatimWeights(compilation.base.model)
    return given.opened.open(path)


def _placed(modules: Sequence[UseCaseModule]) -> Sequence[PlacedModule]:
    """What the adapters bring to one attach point, lowered, in the order in which they act."""
    found: list[PlacedModule] = []
    later: dict[int, NDArray[np.float64]] = {}
    for one in reversed(modules):
        lowered = one.lower()
        if isinstance(lowered, Dense):
            raise TypeError(f"{one.where.module} has no low rank: lower-with-base ran too late")
        found.append(PlacedModule(lowered, one.slot, one.part, one.where, later.get(one.part)))
        if lowered.g is not None:
            later[one.part] = lowered.g.astype(np.float64) * later.get(one.part, 1.0)
    return found[::-1]


def _point_values(
    weights: Sequence[UpdatableWeight],
    branch: Branch | None,
    modules: Sequence[PlacedModule],
    branched: BranchedGraph,
) -> dict[str, Values]:
    found: dict[Role, Values] = {}
    for weight in weights:
        is_one = weight.role in (Role.G, Role.H, Role.ROUTER_REST)
        make = np.ones if is_one else np.zeros
        found[weight.role] = make(weight.record.shape, DTYPE_OF[weight.record.dtype])
    if branch is not None:
        for one in modules:
            if one.lowered.rank:
                place(found[Role.A_WEIGHT], found[Role.B_WEIGHT], branch, one)
            if one.lowered.router is not None:
                _place_router(found, branch, one, one.lowered.router, branched.slot_count)
    for weight in weights:
        if weight.role in (Role.G, Role.H, Role.C) and weight.attach is not None:
            vector = _vector(weight.role, weight.attach, modules)
            if vector is not None:
                dtype = found[weight.role].dtype
                where = modules[-1].where
                found[weight.role] = cast_to(vector, weight.record, dtype, where)
    return {weight.record.name: found[weight.role] for weight in weights}


def _vector(
    role: Role, point: AttachPoint, modules: Sequence[PlacedModule]
) -> NDArray[np.float64] | None:
    """g and c `[out]` over all parts, h `[in]`; None if no module has it."""
    if not any(getattr(one.lowered, role.value) is not None for one in modules):
        return None
    if role is Role.H:
        h = np.ones(point.linear.in_features)
        for one in modules:
            if one.lowered.h is not None:
                h = h * one.lowered.h.astype(np.float64)
        return h
    total = (
        np.ones(point.linear.out_features)
        if role is Role.G
        else np.zeros(point.linear.out_features)
    )
    for one in modules:
        part = point.parts[one.part]
        rows = slice(part.offset, part.offset + part.size)
        values = getattr(one.lowered, role.value)
        if values is None:
            continue
        if role is Role.G:
            total[rows] *= values.astype(np.float64)
        else:
            later = 1.0 if one.gain is None else one.gain
            total[rows] += one.slot.alpha * point.linear.gain * values.astype(np.float64) * later
    return total


def _place_router(
    found: Mapping[Role, Values],
    branch: Branch,
    one: PlacedModule,
    router: Values,
    slot_count: int,
) -> None:
    """Logits from the slot's ranks, and a one where a rank belongs to an expert."""
    if branch.router is None:
        raise TypeError(f"{branch.attach.name} has no router: the branch was built without it")
    parts = len(branch.attach.parts)
    columns = expert_columns(
        branch.router, parts=parts, slot_count=slot_count, part=one.part, slot=one.slot.index
    )
    rank = one.lowered.rank
    first = one.part * (branch.router.weight.shape[0] // parts) + one.slot.start
    ranks = slice(first, first + rank)
    found[Role.ROUTER][ranks, columns] = router.T
    experts = router.shape[0]
    belongs = np.repeat(np.eye(experts, dtype=found[Role.ROUTER].dtype), rank // experts, axis=1)
    found[Role.ROUTER_EXPANSION][columns, ranks] = belongs
    found[Role.ROUTER_REST][ranks] = 0
