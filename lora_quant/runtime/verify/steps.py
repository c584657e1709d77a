"""Two engines on one quantized graph: how many steps of an output's grid lie between them.

A step is the scale of the DequantizeLinear that makes the output. Both engines give whole numbers
of steps, but for the rounding of floats, so that it is whole numbers that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.comparison import largest_difference


@dataclass(frozen=True)
class OutputSteps:
    """Largest and mean difference of one output in steps of the size `step`."""

    use_case: str
    output: str
    steps: float
    mean: float
    step: float
    bound: float
    gates: str = ""

    @property
    def ok(self) -> bool:
        """Whether the largest is within the bound; NaN is not."""
        return self.steps <= self.bound


def compare_steps(
    use_case: str,
    one: Mapping[str, Array],
    other: Mapping[str, Array],
    grid: Mapping[str, float],
    bounds: Mapping[str, float],
    *,
    gates: str = "",
) -> list[OutputSteps]:
    """Differences of the outputs that `grid` has a step for, and that have elements."""
    found = []
    for name, step in grid.items():
        if not (one[name].size or other[name].size):
            continue
        steps = [np.rint(values[name].astype(np.float64) / step) for values in (one, other)]
        largest = mean = float("nan")
        if steps[0].shape == steps[1].shape:
            largest = largest_difference(*steps)
            mean = float(np.abs(steps[0] - steps[1]).mean())
        found.append(OutputSteps(use_case, name, largest, mean, step, bounds[name], gates))
    return found
