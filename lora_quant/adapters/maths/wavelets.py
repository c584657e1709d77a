"""One step of an inverse wavelet transform in two dimensions, for the Daubechies wavelets.

    coefficients [2 m, 2 n] = | lo lo, hi lo |   ->   [2 m - L + 2, 2 n - L + 2]
                              | lo hi, hi hi |        L = length of the filters

A filter of N vanishing moments has L = 2 N values. It is computed, not tabulated (Daubechies, Ten
Lectures on Wavelets, 6.1): (1 + z)^N times the roots inside the unit circle of a polynomial of
binomials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# the first symlets are Daubechies wavelets
MOMENTS: Mapping[str, int] = {**{f"db{n}": n for n in range(1, 11)}, "sym2": 2, "sym3": 3}


@cache
def low_pass(moments: int) -> Vector:
    """The low-pass filter of the reconstruction, `[2 * moments]`, whose sum is sqrt(2).

    For up to 10 moments within 1e-14 of the exact values; beyond, the roots lose digits.
    """
    binomials = [math.comb(moments - 1 + k, k) for k in range(moments)]
    taps = np.array([1.0 + 0.0j])
    for y in np.roots(binomials[::-1]):
        # y = (2 - z - 1 / z) / 4, whose two solutions are inverse to each other
        both = np.roots([1.0, 4.0 * y - 2.0, 1.0])
        taps = np.convolve(taps, [1.0, -both[np.argmin(np.abs(both))]])
    for _ in range(moments):
        taps = np.convolve(taps, [1.0, 1.0])
    real: Vector = taps.real * (math.sqrt(2.0) / taps.real.sum())
    return real


def high_pass(low: Vector) -> Vector:
    """The filter that belongs to a low-pass filter: reversed, every second sign changed."""
    signs = np.where(np.arange(len(low)) % 2, -1.0, 1.0)
    return signs * low[::-1]


def inverse_step(coefficients: Vector, moments: int) -> Vector:
    """The transform in the module's docstring; both sizes of `coefficients` are even."""
    rows, columns = (size // 2 for size in coefficients.shape)
    low_columns = _merged(coefficients[:rows, :columns].T, coefficients[rows:, :columns].T, moments)
    high_columns = _merged(
        coefficients[:rows, columns:].T, coefficients[rows:, columns:].T, moments
    )
    return _merged(low_columns.T, high_columns.T, moments)


def _merged(low: Vector, high: Vector, moments: int) -> Vector:
    """Two bands `[n, m]` each -> `[2 n - L + 2, m]`: spread, filtered, cut at both ends."""
    taps = low_pass(moments)
    length = len(taps)
    full = np.zeros((2 * len(low) + length - 2, low.shape[1]))
    for band, filters in ((low, taps), (high, high_pass(taps))):
        for place, tap in enumerate(filters):
            full[place : place + 2 * len(band) : 2] += tap * band
    return full[length - 2 : len(full) - length + 2]
