"""An independent reference for branched graphs, in float64 numpy.

    y = base(x) + sum over parts of B (s * (A x))        A [R, in, *kernel]  B [out, R]  s [R]

A form (`Linear`, `Convolution`, `Lookup`) says what W x means; it knows nothing of ONNX beyond
shapes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Half the distance from 1 to the next number: the largest relative error of one rounding.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11}


@dataclass(frozen=True)
class Linear:
    """W x over the last axis; `transposed` means that x arrives as `[in, rows]`."""

    transposed: bool = False

    def apply(self, W: Array, x: Array) -> Array:
        """`W` is `[out, in]`."""
        return (x.T if self.transposed else x) @ W.T

    def over_channels(self, vector: Array, y: Array) -> Array:
        return vector


@dataclass(frozen=True)
class Convolution:
    """W x over axis 1, by definition: one product per output position."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]

    def apply(self, W: Array, x: Array) -> Array:
        """`W` is `[out, in, *kernel]`."""
        axes = len(self.strides)
        kernel = W.shape[2:]
        before, after = self.pads[:axes], self.pads[axes:]
        everything = (slice(None), slice(None))
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        sizes = [(padded.shape[2 + a] - kernel[a]) // self.strides[a] + 1 for a in range(axes)]
        y = np.zeros((x.shape[0], W.shape[0], *sizes))
        for position in itertools.product(*map(range, sizes)):
            window = tuple(
                slice(p * s, p * s + k)
                for p, s, k in zip(position, self.strides, kernel, strict=True)
            )
            patch = padded[everything + window].reshape(x.shape[0], -1)
            y[everything + position] = patch @ W.reshape(W.shape[0], -1).T
        return y

    def over_channels(self, vector: Array, y: Array) -> Array:
        return vector.reshape(-1, *(1,) * len(self.strides))


@dataclass(frozen=True)
class Lookup:
    """W applied to the one-hot vectors of indices: columns of W."""

    def apply(self, W: Array, x: Array) -> Array:
        """`W` is `[out, vocabulary]`; an index may come as any type of number."""
        return W[:, x.astype(np.int64)].transpose(*range(1, x.ndim + 1), 0)

    def over_channels(self, vector: Array, y: Array) -> Array:
        return vector


Form = Linear | Convolution | Lookup


def branch_value(form: Form, x: Array, A: Array, B: Array, s: Array) -> Array:
    """B (s * (A x)) in float64."""
    a = form.apply(A.astype(np.float64), x.astype(np.float64))
    m = a * form.over_channels(s, a)
    axes = a.ndim - 2
    if isinstance(form, Convolution):
        point = Convolution((1,) * axes, (0,) * (2 * axes))
        return point.apply(B.astype(np.float64).reshape(*B.shape, *(1,) * axes), m)
    return m @ B.astype(np.float64).T


def error_bound(magnitude: Array, terms: int, dtype: str) -> Array:
    """Largest error of a sum of products evaluated in `dtype` in any order.

    A sum of n terms, each a product of factors that were rounded before, is off by at most
    n u / (1 - n u) times the sum of the terms' absolute values (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1); `magnitude` is that sum and `terms` counts all roundings on
    the longest way from an input to the output. The last summand is for results of float16 that
    are subnormal, where a rounding is absolute.
    """
    u = UNIT_ROUNDOFF[dtype]
    growth = terms * u / (1 - terms * u)
    smallest = 2.0**-25 if dtype == "float16" else 0.0
    return growth * magnitude + terms * smallest


def count_terms(A: Array, B: Array, slots: int) -> int:
    """Roundings through alpha @ E, its cast, A x, the Mul, B m and the two Adds, as bounds."""
    return slots + 1 + math.prod(A.shape[1:]) + 1 + int(B.shape[1]) + 2
