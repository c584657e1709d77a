"""How far rounding alone may take an output: measured, since no formula knows the graph.

    floor  =  4 * max( max|y_moved - y_ref|, max|base_fused - base|, u * max|y_ref| )

y_moved is the reference with every weight that adapters can change, and every constant that they
can replace, moved to one of the two numbers next to it, by seeded signs. To the reference that is
noise: W' is rounded to the type of the node anyway, by up to half of such a step. It also changes
the partial sums of every product in their last places, so that most of them round otherwise. So
y_moved differs from y_ref by

    the walk of the moves     sqrt(sum (u w x)^2) and more, about u |y| in each node
    other draws of the sums   a sum of n terms, taken one by one, is off by about u |y| sqrt(n / 6),
                              less where the engine sums in blocks

and both go through what follows the node, which may damp or amplify them. The compiled graph
differs from the reference by the same kinds: half a step of W', draws of the sums that are all
different, and about one unit for each Add of a branch. Measured on MatMuls in a row, 1 to 32 of
them and 8 to 2048 wide, it is off by up to 2.2 times max|y_moved - y_ref|; 4 leaves room for the
largest of more draws.

A target that runs with fusions has other sums in every node, also where no adapter changes a
weight, so that nothing is moved: base_fused is what that makes of the base graph. It counts up to
1024 u of the output, what sums of 6e6 terms may cost. Beyond, the engine does not reorder sums: it
computes with integers of 8 bits, say, and what that costs (2^-10 of the output and more, 2^14 u of
float32) must not hide an adapter that is not applied.

Where outputs are few, the largest of a draw may be near zero by chance: draws are repeated until
each output had 16 values. u is the unit roundoff of the graph, and the last term what rounding
the output itself may cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.reference.reference import BaseChange, Reference
from lora_quant.runtime.verify.comparison import largest_difference

FACTOR = 4
_VALUES = 16
_MOST_OF_FUSIONS = 1024


def rounding_floors(
    reference: Reference,
    inputs: Mapping[str, Array],
    change: BaseChange,
    wanted: Mapping[str, Array],
    fused: Mapping[str, float],
) -> dict[str, float]:
    """What rounding may change in each output of floats; `wanted` are those with `change`.

    `fused` is how far each output of the base is off where the engine fuses nodes. NaN for an
    output that is not finite.
    """
    floats = {name: y for name, y in wanted.items() if y.size and y.dtype.kind == "f"}
    found = {name: reference.unit * _magnitude(y) for name, y in floats.items()}
    for name, one in found.items():
        if fused[name] <= _MOST_OF_FUSIONS * one:
            found[name] = max(one, fused[name])
    draws = math.ceil(_VALUES / min((y.size for y in floats.values()), default=_VALUES))
    generator = np.random.default_rng(0)
    for _ in range(draws):
        moved = reference.run(inputs, change, lambda values: moved_values(values, generator))
        for name, y in floats.items():
            response = largest_difference(moved[name], y)
            # numpy's maximum keeps NaN, which Python's may drop.
            found[name] = float(np.maximum(found[name], response))
    return {name: FACTOR * value for name, value in found.items()}


def moved_values(values: Array, generator: np.random.Generator) -> Array:
    """Each number of a float array moved to the next one, up or down; zeros stay, as do integers.

    A zero has no last place: next to it are denormal numbers, which stand for no rounding.
    """
    if values.dtype.kind != "f":
        return values
    most = np.finfo(values.dtype).max
    up: NDArray[np.bool_] = generator.integers(0, 2, values.shape, dtype=np.bool_)
    moved: Array = np.nextafter(values, np.where(up, most, -most))
    moved[values == 0] = 0
    return moved


def _magnitude(values: Array) -> float:
    return largest_difference(values, np.zeros_like(values))
