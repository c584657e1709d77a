"""W' = g * W * h + delta over the stored lines of one weight, a few of them at a time.

    stored [out, in / groups, *kernel]    line = row of W        g scales lines, h what is in them
    stored [in, out]                      line = column of W     h scales lines, g what is in them

Computed in float64 and rounded once, to the type that is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.files.element_types import DTYPES, FLOAT_TYPES, type_name
from lora_quant.graph.files.stored_values import ReadRange
from lora_quant.graph.records import LinearNode

Array = NDArray[Any]

_PIECE_BYTES = 2 << 20


class PointUpdate(Protocol):
    """What is merged at one attach point, all its parts together; None where there is nothing.

    delta: `[out, in / groups, *kernel]`; g, c: `[out]`; h: `[in]`. All of them are float64.
    """

    @property
    def delta(self) -> Array | None:
        """What is added to W."""

    @property
    def g(self) -> Array | None:
        """What multiplies the outputs of the base, its bias included."""

    @property
    def h(self) -> Array | None:
        """What multiplies the inputs."""

    @property
    def c(self) -> Array | None:
        """What is added to the outputs."""


def changes_weight(update: PointUpdate) -> bool:
    """Whether W' is not W."""
    if update.g is not None or update.h is not None:
        return True
    return update.delta is not None and bool(update.delta.any())


def merged_lines(
    linear: LinearNode, update: PointUpdate, stored: TensorProto, read: ReadRange, where: Where
) -> Iterator[bytes]:
    """The bytes of W' in storage order; `read` gives what is stored now.

    Raises GraphError for a weight that is not stored as float, a delta of another shape than W, and
    values that the stored type cannot hold.
    """
    _check(linear, update, stored, where)
    first, *rest = stored.dims
    length = math.prod(rest)
    step = max(_PIECE_BYTES // (length * np.dtype(np.float64).itemsize), 1)
    delta = update.delta
    if delta is not None and linear.weight_is_in_out:
        delta = delta.T
    for start in range(0, first, step):
        lines = slice(start, min(start + step, first))
        count = lines.stop - lines.start
        values = read(start * length, count * length).astype(np.float64).reshape(count, *rest)
        for factor in _factors(linear, update, lines):
            values *= factor
        if delta is not None:
            values += delta[lines] / linear.gain
        yield rounded(values, DTYPES[stored.data_type], where).tobytes()


def rounded(values: Array, dtype: np.dtype[Any], where: Where) -> Array:
    """`values` in the type that a graph stores; raises GraphError for those that it cannot hold."""
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if not np.isfinite(result).all():
        raise GraphError(
            f"merged weights reach {np.abs(values).max():.4g}, more than {dtype} can hold, which "
            "is the type of the base graph's weights",
            where=where,
            hint="export the base graph in float32 or bfloat16, or build without --merge",
        )
    return result


def _factors(linear: LinearNode, update: PointUpdate, lines: slice) -> Iterator[Array]:
    """What multiplies the stored `lines`, of a shape that broadcasts to theirs."""
    g, h = update.g, update.h
    if linear.weight_is_in_out:
        if h is not None:
            yield h[lines, None]
        if g is not None:
            yield g
        return
    ones = (1,) * (len(linear.conv.kernel) if linear.conv else 0)
    if g is not None:
        yield g[lines].reshape(-1, 1, *ones)
    if h is not None:
        groups = linear.conv.groups if linear.conv else 1
        rows = np.arange(lines.start, lines.stop) // (linear.out_features // groups)
        yield h.reshape(groups, -1, *ones)[rows]


def _check(linear: LinearNode, update: PointUpdate, stored: TensorProto, where: Where) -> None:
    if stored.data_type not in FLOAT_TYPES and stored.data_type != TensorProto.DOUBLE:
        raise GraphError(
            f"the weight is stored as {type_name(stored.data_type)}, expected a float type",
            where=where,
            hint="give the float graph that was quantized, or build without --merge",
        )
    shape = tuple(reversed(stored.dims)) if linear.weight_is_in_out else tuple(stored.dims)
    if update.delta is not None and update.delta.shape != shape:
        raise GraphError(
            f"the update has shape {list(update.delta.shape)}, the weight {list(shape)}",
            where=where,
            hint="the weight has no place for this update: build without --merge",
        )
    if linear.gain == 0:
        raise GraphError(
            "the node multiplies its weight by zero, so that nothing can be merged into it",
            where=where,
            hint="build without --merge",
        )
