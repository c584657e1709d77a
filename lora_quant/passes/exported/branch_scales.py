"""The scale of an exported branch as one factor for each rank, in every way that it can be read.

constants alone               their product, with the gains of Gemm
a constant and an input       the input brings the strength; its default may count as well
an input alone                its default, if that fits; else only the description tells the factor;
                              1 is no evidence, since that is what any input has that tells nothing
an input times a matrix       the matrix: its rows are the slots
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.branch_values import constant_factors, scale_values
from lora_quant.graph.exported.records import FoundBranch, FoundScale, ScaleSource
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.passes.exported.readings import FloatArray, RankScales

# a constant, and a product of constants, is rounded to the type of the graph: each time by half a
# unit in the last place, of the file's number and of the one that is expected
_ULPS = 2


@dataclass(frozen=True)
class _Slots:
    """The matrix of EXPANDED: the factor of each rank, and the slot that it belongs to."""

    factors: FloatArray
    owners: NDArray[np.intp]


def scale_readings(
    graph: BaseGraph, branch: FoundBranch, empty: NDArray[np.bool_]
) -> tuple[RankScales, ...]:
    """The ways to read the scales of `branch`, the one that tells most first.

    `empty` as in RankScales. Raises GraphError for a matrix that gives one rank to two slots.
    """
    constants = [s for s in branch.scales if s.source is ScaleSource.CONSTANT]
    inputs = [s for s in branch.scales if s.source is ScaleSource.INPUT]
    expanded = [s for s in branch.scales if s.source is ScaleSource.EXPANDED]
    fixed = constant_factors(graph, branch)
    limits = ml_dtypes.finfo(DTYPE_OF[branch.a.dtype])  # type: ignore[no-untyped-call]
    plain = RankScales(
        None,
        empty,
        at_run_time=bool(inputs or expanded),
        tolerance=_ULPS * float(limits.eps) * max(1, len(branch.scales)),
        floor=_ULPS * float(limits.smallest_subnormal),
    )
    if expanded:
        slots = _slots(graph, expanded[0])
        if not slots.factors.any():
            return (plain,)
        return (replace(plain, scale=fixed * slots.factors, slots=slots.owners),)
    if not inputs:
        return (replace(plain, scale=fixed),)
    told = []
    defaults = [scale_values(graph, scale) for scale in inputs]
    given = [one for one in defaults if one is not None]
    if len(given) == len(defaults):
        told.append(fixed * math.prod(_spread(g, branch.rank) for g in given))
    told.append(fixed)
    if constants:
        found = [replace(plain, scale=values) for values in told]
    else:
        found = [replace(plain, scale=values) for values in told if (values != 1).any()]
    if (fixed == 1).all():
        found.append(plain)
    return tuple(found)


def run_time_inputs(branches: Sequence[FoundBranch]) -> tuple[str, ...]:
    """The graph inputs that scale the branches, each once."""
    return tuple(
        dict.fromkeys(
            scale.tensor
            for branch in branches
            for scale in branch.scales
            if scale.source is not ScaleSource.CONSTANT
        )
    )


def _spread(values: FloatArray, rank: int) -> FloatArray:
    return np.broadcast_to(values.reshape(-1), (rank,))


def _slots(graph: BaseGraph, scale: FoundScale) -> _Slots:
    matrix = scale_values(graph, scale)
    if matrix is None:
        raise GraphError(
            f"the matrix {scale.expansion!r} that a branch is scaled by has no values",
            where=Where(file=graph.path, tensor=scale.expansion),
            hint="export the graph with its weights",
        )
    owned = matrix != 0
    if (owned.sum(axis=0) > 1).any():
        rank = int(np.argmax(owned.sum(axis=0) > 1))
        raise GraphError(
            f"the matrix {scale.expansion!r} gives rank {rank} to several slots",
            where=Where(file=graph.path, tensor=scale.expansion),
            hint="give each rank to one adapter",
        )
    owners = np.where(owned.any(axis=0), owned.argmax(axis=0), -1)
    return _Slots(matrix.sum(axis=0), owners)
