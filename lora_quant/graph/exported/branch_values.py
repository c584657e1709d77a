"""The values of a found branch: its factors as `[out, in, ...]`, and what scales it.

MatMul [in, out], Gemm, Conv [out, in, *kernel], Gather [in, out]  ->  [out, in, *kernel]
scalar, [1, R, 1, 1], Identity or Cast of them                     ->  [1] or [R]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.constants import NoConstant, constant_behind
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.records import FoundBranch, FoundScale, ScaleSource
from lora_quant.graph.exported.scales import casts_of, source_of
from lora_quant.graph.exported.small_constants import stored_constant
from lora_quant.graph.files.element_types import DTYPES, type_name
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import Form, LinearNode, Storage

Array = NDArray[Any]


def weight_values(graph: BaseGraph, linear: LinearNode) -> Array:
    """W as `[out, in]`, of a convolution `[out, in / groups, *kernel]`, contiguous.

    So A is `[rank, in, *kernel]` and B `[out, rank]` (`[out, rank, 1, 1]` as a convolution). The
    type is the stored one, bfloat16 as ml_dtypes, unless a Cast on the way to the node rounds: then
    it is what the node computes with. The `gain` of a Gemm is not multiplied in. Raises GraphError
    for a quantized or damaged weight, InputMissingError if its data file cannot be read.
    """
    where = Where(file=graph.path, node=linear.label, tensor=linear.weight)
    node = graph.index.producers[linear.product]
    found = constant_behind(node.input[0 if linear.form is Form.EMBEDDING else 1], graph.index)
    if isinstance(found, NoConstant) or linear.storage is not Storage.FLOAT:
        reason = found.reason if isinstance(found, NoConstant) else "its weight is quantized"
        raise GraphError(
            f"the weight of {linear.label!r} cannot be read: {reason}",
            where=where,
            hint="give the float graph, with the encodings beside it",
        )
    stored = found.stored
    with stored_values(graph.model, stored, where) as read:
        values = read(0, math.prod(stored.dims)).reshape(tuple(stored.dims))
    values = _as_computed(values, found.casts, where)
    if linear.weight_is_in_out:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(values)


def scale_values(graph: BaseGraph, scale: FoundScale) -> NDArray[np.float64] | None:
    """What multiplies: `[1]` or `[rank]`, in the order of the ranks.

    For an input its default, None if it has none. For EXPANDED the matrix `[slots, ranks]` that the
    input is multiplied by. Raises GraphError for a damaged tensor, InputMissingError if its data
    file cannot be read.
    """
    tensor, nodes = source_of(scale.operand, graph)
    if scale.source is ScaleSource.EXPANDED:
        linear = graph.catalog.linears[tensor]
        matrix = weight_values(graph, linear).T.astype(np.float64) * linear.gain
        return np.tile(matrix, (1, scale.size // matrix.shape[1]))
    stored = stored_constant(tensor, graph.index)
    if stored is None:
        return None
    where = Where(file=graph.path, tensor=tensor)
    with stored_values(graph.model, stored, where) as read:
        values = read(0, math.prod(stored.dims))
    casts = tuple(reversed(casts_of(nodes)))
    values = _as_computed(values, casts, where).astype(np.float64)
    # A fused projection reads the same ranks once for each of its parts.
    return np.tile(values, scale.size // values.size)


def constant_factors(graph: BaseGraph, branch: FoundBranch) -> NDArray[np.float64]:
    """What constants multiply each rank of a branch by `[rank]`: scales, and the gains of Gemm.

    What inputs multiply by is left out. Raises what scale_values does.
    """
    factors = np.full(branch.rank, branch.a.gain * branch.b.gain)
    for scale in branch.scales:
        values = None
        if scale.source is ScaleSource.CONSTANT:
            values = scale_values(graph, scale)
        if values is not None:
            factors = factors * values
    return factors


def _as_computed(values: Array, casts: tuple[int, ...], where: Where) -> Array:
    """The values after the casts on the way, in their stored type if no cast changes them."""
    unknown = [element for element in casts if element not in DTYPES]
    if unknown:
        raise GraphError(
            f"a value is cast to {type_name(unknown[0])}, which cannot be followed",
            where=where,
            hint="export the adapter in float32, float16 or bfloat16",
        )
    dtypes = [DTYPES[element] for element in casts]
    if all(np.can_cast(values.dtype, dtype, "safe") for dtype in dtypes):
        return values
    with np.errstate(over="ignore"):
        for dtype in dtypes:
            values = values.astype(dtype)
    return values
