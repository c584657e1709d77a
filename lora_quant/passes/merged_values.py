"""What a use case adds to the base's weights when it is merged into them.

    W' = g * W * h + delta        b' = g * b + c

Every kind has this form, dense ones included. Strengths multiply delta and c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.lowered import Dense, Lowered
from lora_quant.errors import UnsupportedAdapterError
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.records import AttachPoint
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.modules_by_point import ModulesByPoint

Array = NDArray[np.float64]


@dataclass
class MergedPoint:
    """The update of one attach point, all its parts together.

    delta: `[out, in / groups, *kernel]`; g and c `[out]`, h `[in]`; None where absent.
    """

    delta: Array
    g: Array | None = None
    h: Array | None = None
    c: Array | None = None


class MergedValues:
    """Computes the update of one attach point after the other; none is kept."""

    def __init__(self, compilation: Compilation, use_case: str) -> None:
        resolution: Resolution = compilation.having("resolution")
        self._points = resolution.points
        self._modules = ModulesByPoint(compilation, use_case)

    def point(self, number: int) -> MergedPoint:
        """The update of one attach point, its adapters acting in the order of the use case.

        Raises UnsupportedAdapterError for a gate or a router, which no weight can hold.
        """
        point = self._points[number]
        merged = MergedPoint(np.zeros(_weight_shape(point)))
        for one in self._modules.at(number):
            if one.shape.gated or one.shape.experts:
                raise UnsupportedAdapterError(
                    "what this module adds depends on the tokens: it cannot be put into a weight",
                    where=one.where,
                    hint="build without --merge",
                )
            if one.shape.groups > 1:
                raise UnsupportedAdapterError(
                    f"the module is a convolution of {one.shape.groups} groups, and its lora_A "
                    "reads all channels: the weight has no place for that",
                    where=one.where,
                    hint="build without --merge",
                )
            rows = point.parts[one.part]
            place = slice(rows.offset, rows.offset + rows.size)
            _add(merged, one.lower(), place, one.slot.alpha)
        # The node multiplies all of W x with it; see lora_quant.graph.merging.merged_weights.
        gain = point.linear.gain
        merged.delta *= gain
        merged.c = None if merged.c is None else merged.c * gain
        return merged


def _add(merged: MergedPoint, lowered: Lowered | Dense, rows: slice, alpha: float) -> None:
    if isinstance(lowered, Lowered):
        if lowered.g is not None:
            g = lowered.g.astype(np.float64)
            merged.delta[rows] *= g.reshape(-1, *(1,) * (merged.delta.ndim - 1))
            merged.g = np.ones(len(merged.delta)) if merged.g is None else merged.g
            merged.g[rows] *= g
            if merged.c is not None:
                merged.c[rows] *= g
        if lowered.h is not None:
            h = lowered.h.astype(np.float64)
            merged.h = h if merged.h is None else merged.h * h
    if isinstance(lowered, Dense) or lowered.rank:
        update = lowered.delta if isinstance(lowered, Dense) else _product(lowered)
        merged.delta[rows] += alpha * update.reshape(merged.delta[rows].shape)
    if lowered.c is not None:
        merged.c = np.zeros(len(merged.delta)) if merged.c is None else merged.c
        merged.c[rows] += alpha * lowered.c.astype(np.float64)


def _product(lowered: Lowered) -> Array:
    """B diag(s) A, `[out, in * kernel]`."""
    A = lowered.A.reshape(lowered.rank, -1).astype(np.float64)
    product: Array = (lowered.B.astype(np.float64) * lowered.s) @ A
    return product


def _weight_shape(point: AttachPoint) -> tuple[int, ...]:
    linear = point.linear
    if linear.conv is None:
        return (linear.out_features, linear.in_features)
    return (
        linear.out_features,
        linear.in_features // linear.conv.groups,
        *linear.conv.kernel,
    )
