"""The range of the updatable weights of one use case, per output channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_quant.passes.weight_values import PointValues

FloatArray = NDArray[np.float64]


class WeightRanges:
    """Filled while the weights pass by; what is kept is one number per channel.

    Channels of A are its ranks `[parts * R]`, those of B its output features `[out]`. Every other
    weight has one range.
    """

    def __init__(self) -> None:
        self.low: dict[str, FloatArray] = {}
        self.high: dict[str, FloatArray] = {}

    def observe(self, point: PointValues) -> None:
        """Note the ranges of one attach point."""
        axes: dict[str, int] = {}
        if point.branch is not None:
            axis_a, axis_b = point.branch.channel_axes
            axes = {point.branch.a_weight.name: axis_a, point.branch.b_weight.name: axis_b}
        for name, values in point.values.items():
            self.take(name, values, axes.get(name))

    def take(self, name: str, values: NDArray[np.generic], axis: int | None = None) -> None:
        """Note the range of one weight, per channel of `axis` if one is given."""
        others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
        self.low[name] = np.atleast_1d(values.min(axis=others).astype(np.float64))
        self.high[name] = np.atleast_1d(values.max(axis=others).astype(np.float64))
