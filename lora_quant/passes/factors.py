"""The values of A, B and E of one use case, in the layout of the graph, one branch at a time.

Slot i of a use case owns ranks [start, start + rank) at every attach point; a part of a fused
projection owns its own copy of all R ranks. What an adapter does not fill stays zero, so

    y = h + B (s * (A x)),   s = alpha @ E,   E[i, ranks of slot i] = scale_i

equals the sum over the adapters of alpha_i * s_i * B_i A_i x. The adapter-wide scale_i is in E; a
module whose own scale differs has the ratio folded into its B, as has the `alpha` of a Gemm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.finite import all_finite
from lora_quant.adapters.lowered import Lowered
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where
from lora_quant.graph.attach import Resolution
from lora_quant.graph.records import Branch, BranchedGraph, Form, TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import Slot

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, eq=False)
class BranchFactors:
    """A and B of one branch for one use case, of the shapes and dtypes in its records."""

    branch: Branch
    A: NDArray[np.generic]
    B: NDArray[np.generic]


def branch_factors(compilation: Compilation, use_case: str) -> Iterator[BranchFactors]:
    """Factors of every branch in graph order; only one branch is in memory at a time.

    Raises AdapterError for values that the graph's dtype cannot hold.
    """
    adapters: Mapping[str, Adapter] = compilation.having("adapters")
    branched: BranchedGraph = compilation.having("branched")
    slots = compilation.having("slots").use_cases[use_case]
    resolution: Resolution = compilation.having("resolution")
    modules = {slot.adapter: _by_point(adapters[slot.adapter], resolution) for slot in slots}
    for number, branch in enumerate(branched.branches):
        A = np.zeros(branch.a_weight.shape, _DTYPES[branch.a_weight.dtype])
        B = np.zeros(branch.b_weight.shape, _DTYPES[branch.b_weight.dtype])
        for slot in slots:
            adapter = adapters[slot.adapter]
            for part, module in modules[slot.adapter].get(number, ()):
                lowered = adapter.lower(module)
                where = Where(use_case=use_case, adapter=adapter.name, module=module)
                first = part * branched.max_rank + slot.start
                _place(A, B, lowered, branch, slot, first, part, where)
        yield BranchFactors(branch, A, B)


def expansion_matrix(record: TensorRecord, slots: tuple[Slot, ...]) -> NDArray[np.float32]:
    """E `[slots, R]`: the adapter-wide scale of each slot on its own ranks."""
    matrix = np.zeros(record.shape, np.float32)
    for slot in slots:
        matrix[slot.index, slot.start : slot.start + slot.rank] = slot.scale
    return matrix


def fold(lowered: Lowered, slot: Slot, gain: float) -> NDArray[np.float64] | None:
    """Factor of B's columns `[rank]` that E does not carry, None where it is 1 throughout."""
    factor = lowered.s / slot.scale * gain
    return None if np.all(factor == 1.0) else factor


def _by_point(adapter: Adapter, resolution: Resolution) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for module in adapter.shapes:
        placement = resolution.placements[module]
        found[placement.point].append((placement.part, module))
    return found


def _place(
    A: NDArray[np.generic],
    B: NDArray[np.generic],
    lowered: Lowered,
    branch: Branch,
    slot: Slot,
    first: int,
    part: int,
    where: Where,
) -> None:
    """Write one module's factors into ranks `first` and up of the branch's tensors."""
    if lowered.g is not None or lowered.h is not None or lowered.c is not None:
        raise UnsupportedAdapterError(
            "this module scales activations or changes a bias, which the branch cannot carry",
            where=where,
        )
    linear = branch.attach.linear
    rank = lowered.rank
    ranks = slice(first, first + rank)
    rows = slice(
        branch.attach.parts[part].offset,
        branch.attach.parts[part].offset + branch.attach.parts[part].size,
    )
    factor = fold(lowered, slot, linear.gain)
    values = lowered.B if factor is None else lowered.B.astype(np.float64) * factor
    with np.errstate(over="ignore"):
        cast_a, cast_b = lowered.A.astype(A.dtype), values.astype(B.dtype)
    for name, source, result in (("A", lowered.A, cast_a), ("B", values, cast_b)):
        if not all_finite(result):
            largest = float(np.abs(np.asarray(source, np.float64)).max())
            raise AdapterError(
                f"values of lora_{name} reach {largest:.4g}, more than {A.dtype} can hold, which "
                "is the type of the base graph's weights",
                where=where,
                hint="export the base graph in float32 or bfloat16",
            )
    if linear.form is Form.CONV:
        A[ranks] = cast_a.reshape(rank, *A.shape[1:])
        B[rows, ranks] = cast_b.reshape(*cast_b.shape, *(1,) * (B.ndim - 2))
    else:
        A[:, ranks] = cast_a.reshape(rank, -1).T
        B[ranks, rows] = cast_b.T
