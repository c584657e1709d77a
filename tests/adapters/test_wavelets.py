"""Filters by what defines them, and one inverse step against the forward one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.maths.wavelets import MOMENTS, high_pass, inverse_step, low_pass

Matrix = NDArray[np.float64]
# What the docstring promises of each value; sums of up to 20 of them.
CLOSE = 20 * 1e-14


@pytest.mark.parametrize("moments", range(1, 11))
def test_a_filter_is_orthogonal_to_its_shifts(moments: int) -> None:
    h = low_pass(moments)
    assert len(h) == 2 * moments
    assert abs(h.sum() - math.sqrt(2)) <= CLOSE
    for shift in range(moments):
        product = sum(h[k] * h[k + 2 * shift] for k in range(len(h) - 2 * shift))
        assert abs(product - (1 if shift == 0 else 0)) <= CLOSE


@pytest.mark.parametrize("moments", range(1, 11))
def test_the_high_pass_filter_removes_polynomials(moments: int) -> None:
    g = high_pass(low_pass(moments))
    x = np.linspace(-1, 1, 2 * moments)
    for degree in range(moments):
        # polynomials on [-1, 1], so that every term is at most 1
        assert abs(sum(g * x**degree)) <= 100 * CLOSE


def test_the_filters_have_the_published_values() -> None:
    root = math.sqrt(3)
    exact = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    assert np.abs(low_pass(2) - exact).max() <= CLOSE
    # Daubechies, Ten Lectures on Wavelets, table 6.1, to the digits printed there
    printed = {
        3: [0.3326705529500825, 0.8068915093110924, 0.4598775021184914],
        4: [0.2303778133088964, 0.7148465705529154, 0.6308807679298587],
        10: [0.0266700579005473, 0.1881768000776347, 0.5272011889315757],
    }
    for moments, values in printed.items():
        assert np.abs(low_pass(moments)[:3] - values).max() <= 1e-12


def forward(matrix: Matrix, moments: int) -> Matrix:
    """One step along the rows, then the columns, of a periodic matrix, as a loop."""
    h = low_pass(moments)
    g = high_pass(h)
    for _ in range(2):
        count = len(matrix)
        bands = [
            [
                sum(f[k] * matrix[(2 * n + k) % count] for k in range(len(f)))
                for n in range(count // 2)
            ]
            for f in (h, g)
        ]
        matrix = np.concatenate([np.array(band) for band in bands]).T
    return matrix


@given(
    moments=st.sampled_from([1, 2, 3, 4]),
    half=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_inverse_step_undoes_the_forward_step_away_from_the_border(
    moments: int, half: tuple[int, int], seed: int
) -> None:
    cut = 2 * moments - 2
    rows, columns = (2 * (cut + h) for h in half)
    inner = np.zeros((rows, columns))
    middle = (slice(cut, rows - cut), slice(cut, columns - cut))
    inner[middle] = np.random.default_rng(seed).normal(size=inner[middle].shape)
    coefficients = forward(inner, moments)
    top, bottom = coefficients[: rows // 2], coefficients[rows // 2 :]
    # the bands of the rows lie on top of each other, those of the columns side by side, and the
    # order of the quadrants is PEFT's: columns' high band below, rows' high band at the right
    left, right = slice(None, columns // 2), slice(columns // 2, None)
    placed = np.block([[top[:, left], bottom[:, left]], [top[:, right], bottom[:, right]]])
    found = inverse_step(placed, moments)
    assert found.shape == (rows - cut, columns - cut)
    assert np.abs(found - inner[cut:, cut:]).max() <= 100 * CLOSE


def test_the_first_symlets_are_daubechies_wavelets() -> None:
    assert MOMENTS["sym2"] == MOMENTS["db2"] == 2
    assert MOMENTS["sym3"] == MOMENTS["db3"] == 3
    assert "sym4" not in MOMENTS
