"""The range of the branch weights of one use case, per output channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.records import Branch, Form
from lora_quant.passes.factors import BranchFactors

FloatArray = NDArray[np.float64]


class WeightRanges:
    """Filled while the weights pass by; what is kept is one number per channel.

    Channels of A are its ranks `[parts * R]`, those of B its output features `[out]`.
    """

    def __init__(self) -> None:
        self.low: dict[str, FloatArray] = {}
        self.high: dict[str, FloatArray] = {}

    def observe(self, factors: BranchFactors) -> None:
        """Note the ranges of one branch."""
        axis_a, axis_b = channel_axes(factors.branch)
        for record, values, axis in (
            (factors.branch.a_weight, factors.A, axis_a),
            (factors.branch.b_weight, factors.B, axis_b),
        ):
            others = tuple(i for i in range(values.ndim) if i != axis)
            self.low[record.name] = values.min(axis=others).astype(np.float64)
            self.high[record.name] = values.max(axis=others).astype(np.float64)


def channel_axes(branch: Branch) -> tuple[int, int]:
    """Channel axes of A and B: 1 and 1 for `[in, R]`, `[R, out]`; 0 and 0 for a convolution."""
    return (0, 0) if branch.attach.linear.form is Form.CONV else (1, 1)
