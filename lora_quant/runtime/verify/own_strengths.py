"""What the strengths' inputs of a use case's own graph have to be, so that it is as configured.

constants of the branch * input  =  scale of the adapter * its strength        rank by rank
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.branch_values import constant_factors, scale_values
from lora_quant.graph.exported.records import FoundScale, ScaleSource
from lora_quant.graph.files.element_types import DTYPE_OF, DTYPES
from lora_quant.passes.exported.records import ExportedBranch, ExportedUseCase

# A constant of the graph, and the product of two, are rounded to its type.
_ULPS = 4


def own_strengths(
    graph: BaseGraph,
    use_case: ExportedUseCase,
    adapters: Mapping[str, Adapter],
    strengths: Mapping[str, float],
) -> dict[str, Array]:
    """Input -> values, for every input that scales branches.

    `strengths`: adapter -> the strength of the use case. Raises VerificationError if no values do.
    """
    found: dict[str, NDArray[np.float64]] = {}
    modules = {name: NameTable(adapter.shapes) for name, adapter in adapters.items()}
    for branch in use_case.branches:
        if all(scale.source is ScaleSource.CONSTANT for scale in branch.found.scales):
            continue
        wanted = np.full(branch.found.rank, np.nan)
        for ranks in branch.ranks:
            adapter = adapters[ranks.adapter]
            found_modules = modules[ranks.adapter].find(branch.module)
            if len(found_modules) != 1:
                raise VerificationError(
                    f"adapter {ranks.adapter!r} has {len(found_modules)} modules that module "
                    f"{branch.module!r} can be, expected one",
                    where=Where(file=graph.path, adapter=ranks.adapter, module=branch.module),
                )
            factor = adapter.shapes[found_modules[0]].scale * strengths[ranks.adapter]
            wanted[ranks.begin : ranks.begin + ranks.size] = factor
        for scale, values in _solved(graph, branch, wanted):
            _take(graph, found, scale, values, branch)
    return {name: _as_input(graph, name, values) for name, values in found.items()}


def _solved(
    graph: BaseGraph, branch: ExportedBranch, wanted: NDArray[np.float64]
) -> Iterator[tuple[FoundScale, NDArray[np.float64]]]:
    """The input of a branch and its values; NaN where the branch does not tell."""
    found = branch.found
    fixed = constant_factors(graph, found)
    inputs = [scale for scale in found.scales if scale.source is not ScaleSource.CONSTANT]
    if len(inputs) > 1:
        raise _undecided(graph, inputs[1], f"module {branch.module!r} is scaled by two inputs")
    scale = inputs[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        each = wanted / fixed
        if scale.source is ScaleSource.INPUT:
            yield scale, each if scale.size > 1 else _one(graph, scale, each, branch)
            return
        matrix = scale_values(graph, scale)
        if matrix is None:
            raise _undecided(graph, scale, f"{scale.expansion!r} has no values")
        slots = np.where(matrix != 0, each / matrix, np.nan)
    yield scale, np.array([_one(graph, scale, slot, branch)[0] for slot in slots])


def _one(
    graph: BaseGraph, scale: FoundScale, each: NDArray[np.float64], branch: ExportedBranch
) -> NDArray[np.float64]:
    """The value that all ranks need, `[1]`; NaN if none tells."""
    told = each[np.isfinite(each)]
    if told.size and not _close(told, told[:1], branch):
        raise _undecided(graph, scale, f"the ranks of module {branch.module!r} need different ones")
    return told[:1] if told.size else np.full(1, np.nan)


def _take(
    graph: BaseGraph,
    found: dict[str, NDArray[np.float64]],
    scale: FoundScale,
    values: NDArray[np.float64],
    branch: ExportedBranch,
) -> None:
    """Add what one branch tells to what others do."""
    known = found.setdefault(scale.tensor, np.full(values.shape, np.nan))
    if known.shape != values.shape:
        raise _undecided(graph, scale, "branches read it in different sizes")
    both = np.isfinite(known) & np.isfinite(values)
    if not _close(values[both], known[both], branch):
        raise _undecided(graph, scale, f"module {branch.module!r} needs others than before")
    found[scale.tensor] = np.where(np.isfinite(known), known, values)


def _close(one: NDArray[np.float64], other: NDArray[np.float64], branch: ExportedBranch) -> bool:
    limits = ml_dtypes.finfo(DTYPE_OF[branch.found.a.dtype])  # type: ignore[no-untyped-call]
    return bool(np.all(np.abs(one - other) <= _ULPS * float(limits.eps) * np.abs(other)))


def _as_input(graph: BaseGraph, name: str, values: NDArray[np.float64]) -> Array:
    """Values of an input in its type and shape; 0 for ranks and slots that nobody owns."""
    told = graph.index.values[name].type.tensor_type
    sizes = [dim.dim_value or 1 for dim in told.shape.dim]
    if values.size != int(np.prod(sizes)):
        sizes = [values.size]
    return np.nan_to_num(values).astype(DTYPES[told.elem_type]).reshape(sizes)


def _undecided(graph: BaseGraph, scale: FoundScale, reason: str) -> VerificationError:
    return VerificationError(
        f"no values of the input {scale.tensor!r} make the graph as it is configured: {reason}",
        where=Where(file=graph.path, tensor=scale.tensor),
    )
