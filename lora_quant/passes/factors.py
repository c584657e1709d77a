"""The values of A and B of one branch, placed by slot and part.

Slot i of a use case owns ranks [start, start + rank) at every attach point; a part of a fused
projection owns its own copy of all R ranks. What an adapter does not fill stays zero, so

    y = h + B (s * (A x)),   s = alpha @ E,   E[i, ranks of slot i] = scale_i

equals the sum over the adapters of alpha_i * B_i (s_i * (A_i x)). The adapter-wide scale_i is in E;
where a module's s differs from it, the ratio is folded into B, as is the `alpha` of a Gemm. The B
of a grouped convolution is spread over its groups' blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.finite import all_finite
from lora_quant.adapters.lowered import FloatArray, Lowered
from lora_quant.errors import AdapterError, Where
from lora_quant.graph.records import Branch, Form, TensorRecord
from lora_quant.passes.slots import Slot


@dataclass(frozen=True, eq=False)
class PlacedModule:
    """One module of one adapter, where it goes within a branch.

    `gain` `[out]` is what adapters that act later multiply its output with, None for 1.
    """

    lowered: Lowered
    slot: Slot
    part: int
    where: Where
    gain: NDArray[np.float64] | None = None


def place(
    A: NDArray[np.generic], B: NDArray[np.generic], branch: Branch, one: PlacedModule
) -> None:
    """Write one module's factors into a branch's tensors, of the shapes in its records.

    Raises AdapterError for values that the tensors' dtype cannot hold.
    """
    linear, part = branch.attach.linear, branch.attach.parts[one.part]
    rank = one.lowered.rank
    first = one.part * _ranks_per_part(branch) + one.slot.start
    ranks = slice(first, first + rank)
    rows = slice(part.offset, part.offset + part.size)
    cast_a = _cast(one.lowered.A, A.dtype, "lora_A", one.where)
    cast_b = _cast(_b_values(one, linear.gain), B.dtype, "lora_B", one.where)
    if linear.form is Form.CONV:
        A[ranks] = cast_a.reshape(rank, *A.shape[1:])
        B[rows, ranks] = cast_b.reshape(*cast_b.shape, *(1,) * (B.ndim - 2))
    else:
        # A graph that brought its branches may store either the other way round.
        axis_a, axis_b = branch.channel_axes
        (A if axis_a else A.T)[:, ranks] = cast_a.reshape(rank, -1).T
        (B if axis_b else B.T)[ranks, rows] = cast_b.T


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


def spread_groups(B: FloatArray, rank: int) -> FloatArray:
    """`[out, rank / groups]` -> `[out, rank]`, zero outside of each group's own ranks."""
    out, per_group = B.shape
    groups = rank // per_group
    spread = np.zeros((out, rank), B.dtype)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        spread[rows, group * per_group : (group + 1) * per_group] = B[rows]
    return spread


def cast_to(
    values: FloatArray, record: TensorRecord, dtype: np.dtype[np.generic], where: Where
) -> NDArray[np.generic]:
    """Values in a record's dtype and shape; AdapterError for one that it cannot hold."""
    return _cast(values, dtype, record.name, where).reshape(record.shape)


def _b_values(one: PlacedModule, gemm_gain: float) -> FloatArray:
    B = one.lowered.B
    if B.shape[1] != one.lowered.rank:
        B = spread_groups(B, one.lowered.rank)
    factor = fold(one.lowered, one.slot, gemm_gain)
    if factor is None and one.gain is None:
        return B
    scaled = B.astype(np.float64) * (1.0 if factor is None else factor)
    return scaled if one.gain is None else scaled * one.gain[:, None]


def _ranks_per_part(branch: Branch) -> int:
    return branch.a_weight.shape[branch.channel_axes[0]] // len(branch.attach.parts)


def _cast(
    values: FloatArray, dtype: np.dtype[np.generic], what: str, where: Where
) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values).astype(dtype)
    if not all_finite(result):
        largest = float(np.abs(np.asarray(values, np.float64)).max())
        raise AdapterError(
            f"values of {what} reach {largest:.4g}, more than {dtype} can hold, which is the type "
            "of the base graph's weights",
            where=where,
            hint="export the base graph in float32 or bfloat16",
        )
    return result
