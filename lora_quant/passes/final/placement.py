"""Whether adapters fit the branches of a final graph, exactly; if not, why.

y = h + B (s * (A x)),   A and B with room for every rank, s one of

alpha [slots] @ E [slots, R]     E holds lora_alpha / r, alpha the strength
alpha [R], fed by the host       strength times lora_alpha / r
a constant [R] that switches     strength times lora_alpha / r
a constant for all ranks         that product, if it is one for all adapters of the use case
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.errors import GraphError, UnsupportedAdapterError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.adopted import AdoptedGraph, factor_shapes, holds_ranks
from lora_quant.graph.exported.branch_values import scale_values
from lora_quant.graph.exported.records import FoundBranch, FoundScale, ScaleSource
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.graph.records import Branch, BranchedGraph, ConstantScale
from lora_quant.passes.slots import Slot

_WAY_OUT = "build from the base graph without branches, with create_lora_graph at True"


def check_adapter(adapter: Adapter) -> None:
    """Raise UnsupportedAdapterError for an adapter that is more than low rank."""
    shapes = adapter.shapes.values()
    there = {
        "vectors": any(shape.vectors for shape in shapes),
        "gates": any(shape.gated for shape in shapes),
        "routers": any(shape.experts for shape in shapes),
        "parameters of the base": bool(adapter.parameters),
        "a soft prompt": adapter.description.prompt is not None,
    }
    found = [part for part, is_there in there.items() if is_there]
    if found:
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} brings {' and '.join(found)}, and a final graph takes low "
            "rank alone",
            where=Where(file=adapter.checkpoint.config.file, adapter=adapter.name),
            hint=_WAY_OUT,
        )


def check_branches(graph: BaseGraph, adopted: AdoptedGraph) -> None:
    """Raise GraphError for a graph whose branches cannot take the factors of an adapter."""
    branched = adopted.branched
    expansion = None if branched.scale is None else branched.scale.expansion
    if expansion is not None:
        wanted = (branched.slot_count, branched.max_rank)
        if (expansion.shape, expansion.dtype) != (wanted, "float32"):
            got = f"{expansion.dtype} {list(expansion.shape)}"
            told = f"the matrix that expands strengths is {got}, expected float32 {list(wanted)}"
            raise _unfit(graph, told, expansion.name)
    for branch in branched.branches:
        found = adopted.found[branch.attach.name]
        parts = len(branch.attach.parts)
        reason = _misshapen(branch, found) or _misscaled(branched, found, parts)
        if reason is not None:
            raise _unfit(graph, f"the branch at {branch.attach.name!r} {reason}", branch.y)


def _misshapen(branch: Branch, found: FoundBranch) -> str | None:
    """Why A and B of an adapter have no place in a branch as they are."""
    if (branch.a_weight.shape, branch.b_weight.shape) != factor_shapes(branch, found.rank):
        return (
            f"has A {list(branch.a_weight.shape)} and B {list(branch.b_weight.shape)}, which do "
            "not connect every feature to every rank"
        )
    if found.a.gain != 1.0 or found.b.gain != 1.0:
        return "has a Gemm that scales"
    if found.h != branch.h or found.y != branch.attach.output:
        return "is not the one that its attach point was resolved to"
    return None


def _misscaled(branched: BranchedGraph, found: FoundBranch, parts: int) -> str | None:
    """Why the scale of an adapter cannot be told to a branch."""
    if len(found.scales) != 1:
        return f"is scaled {len(found.scales)} times, expected once"
    scale = found.scales[0]
    if scale.source is ScaleSource.CONSTANT:
        return None
    if not holds_ranks(found, scale):
        return "is scaled by one strength for all ranks, so that lora_alpha / r has no place"
    if found.rank != parts * branched.max_rank:
        return "has another number of ranks than the strengths"
    return None


def check_use_case(
    graph: BaseGraph,
    adopted: AdoptedGraph,
    adapters: Mapping[str, Adapter],
    points: Mapping[tuple[str, str], str],
    use_case: str,
    slots: Sequence[Slot],
) -> None:
    """Raise GraphError if the adapters of a use case have no room, or no scale, in a branch.

    `points`: adapter and module -> name of the attach point.
    """
    branches = {branch.attach.name: branch for branch in adopted.branched.branches}
    where = Where(file=graph.path, use_case=use_case)
    if len(slots) > adopted.branched.slot_count and adopted.branched.scale is not None:
        raise GraphError(
            f"use case {use_case!r} mixes {len(slots)} adapters, and the graph has "
            f"{adopted.branched.slot_count} strengths",
            where=where,
            hint="build a graph with more slots",
        )
    for slot in slots:
        for module, shape in adapters[slot.adapter].shapes.items():
            name = points[slot.adapter, module]
            parts = len(branches[name].attach.parts)
            room = adopted.found[name].rank // parts
            if slot.start + shape.rank > room:
                raise GraphError(
                    f"the adapters of use case {use_case!r} need ranks up to "
                    f"{slot.start + shape.rank} at {name!r}, and its branch has {room}",
                    where=Where(
                        file=graph.path, use_case=use_case, adapter=slot.adapter, module=module
                    ),
                    hint="build a graph of a larger max rank",
                )
    switchable = {one.weight.name for one in adopted.branched.constant_scales}
    for found in adopted.found.values():
        for scale in found.scales:
            if scale.source is ScaleSource.CONSTANT:
                is_fixed = scale.tensor not in switchable
                _check_constant(graph, found, scale, use_case, slots, is_fixed=is_fixed)


def _check_constant(
    graph: BaseGraph,
    found: FoundBranch,
    scale: FoundScale,
    use_case: str,
    slots: Sequence[Slot],
    *,
    is_fixed: bool,
) -> None:
    factors = {slot.alpha * slot.scale for slot in slots if slot.rank}
    where = Where(file=graph.path, use_case=use_case, tensor=scale.tensor)
    has_ranks = holds_ranks(found, scale)
    if not has_ranks and len(factors) > 1:
        raise GraphError(
            f"the branch at {found.y!r} is scaled by one constant for all ranks, and the adapters "
            f"of use case {use_case!r} by {_told(factors)}",
            where=where,
            hint=_WAY_OUT,
        )
    if not is_fixed:
        return
    values = scale_values(graph, scale)
    wanted = constant_values(found.rank, slots) if has_ranks else np.array(sorted(factors))
    filled = wanted != 0
    if values is None or (wanted.size and not np.array_equal(values[filled], wanted[filled])):
        got = "something else" if values is None else _told(set(values.tolist()))
        raise GraphError(
            f"the branch at {found.y!r} is scaled by {got}, a constant that cannot be switched, "
            f"and the adapters of use case {use_case!r} by {_told(factors)}",
            where=where,
            hint=_WAY_OUT,
        )


def constant_values(ranks: int, slots: Sequence[Slot]) -> NDArray[np.float64]:
    """Strength times lora_alpha / r on the ranks of each slot `[ranks]`, 0 elsewhere."""
    values = np.zeros(ranks)
    for slot in slots:
        values[slot.start : slot.start + slot.rank] = slot.alpha * slot.scale
    return values


def placed_scales(
    branched: BranchedGraph, slots: Sequence[Slot]
) -> Iterator[tuple[ConstantScale, NDArray[np.generic]]]:
    """The values of every constant that scales branches, in the shape and dtype of its record."""
    for one in branched.constant_scales:
        dtype = DTYPE_OF[one.weight.dtype]
        size = int(np.prod(one.weight.shape, dtype=np.int64))
        if size == 1 and branched.max_rank > 1:
            values = np.array([max((s.alpha * s.scale for s in slots if s.rank), default=0.0)])
        else:
            values = constant_values(size, slots)
        yield one, values.astype(dtype).reshape(one.weight.shape)


def _unfit(graph: BaseGraph, reason: str, tensor: str) -> GraphError:
    return GraphError(
        f"adapters cannot be placed into the given graph: {reason}",
        where=Where(file=graph.path, tensor=tensor),
        hint="name a graph of its own for each use case, or " + _WAY_OUT,
    )


def _told(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values)) or "none"
