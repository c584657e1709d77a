"""FOURIERFT and WAVEFT against sums of single coefficients."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.kinds.spectral import FourierftRule, WaveftRule, wavelet_update
from lora_quant.adapters.lowered import Need
from lora_quant.adapters.maths.seeded import fourierft_indices
from lora_quant.adapters.maths.wavelets import high_pass, low_pass
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, dense, of_module

FOURIER, WAVE = FourierftRule(), WaveftRule()
sizes = st.integers(1, 6)
# A transform of at most 6 x 6 values, in double precision; normal values stay below 8.
TINY = 36 * 8 * 2.0**-53 * 8


def spectrum(kind: str, values: Array) -> dict[str, Array]:
    return of_module({f"{kind.lower()}_spectrum": values})


@given(out=sizes, inputs=sizes, seed=st.integers(0, 2**16), data=st.data())
def test_the_update_is_a_sum_of_waves(
    out: int, inputs: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, out * inputs))
    values = np.random.default_rng(seed).normal(size=count)
    fields = {"n_frequency": count, "scaling": 3.0, "random_loc_seed": seed}
    held = checkpoint("FOURIERFT", spectrum("FOURIERFT", values), **fields)
    found = dense(FOURIER, held, SmallBase({Q: np.zeros((out, inputs))}))
    expected = np.zeros((out, inputs))
    for value, row, column in zip(
        values, *fourierft_indices(seed, out, inputs, count), strict=True
    ):
        for i in range(out):
            for j in range(inputs):
                turn = row * i / out + column * j / inputs
                expected[i, j] += (value * cmath.exp(2j * math.pi * turn)).real
    assert np.abs(found.delta - 3 * expected / (out * inputs)).max() <= 3 * TINY


def one_wave(row: int, column: int, grid: tuple[int, int], moments: int) -> Array:
    """The inverse step of a single 1 at a place of the grid, from the outer product of filters."""
    low = low_pass(moments)
    # the lower half of the rows is high-pass along the columns, and the other way round
    is_low, is_left = row < grid[0] // 2, column < grid[1] // 2
    along_rows = low if is_left else high_pass(low)
    along_columns = low if is_low else high_pass(low)
    start_row, start_column = 2 * (row % (grid[0] // 2)), 2 * (column % (grid[1] // 2))
    wide = np.zeros((grid[0] + 2 * len(low), grid[1] + 2 * len(low)))
    patch = np.outer(along_rows, along_columns)
    wide[start_row : start_row + len(low), start_column : start_column + len(low)] = patch
    cut = len(low) - 2
    return wide[cut : cut + grid[0] - cut, cut : cut + grid[1] - cut]


@pytest.mark.parametrize("moments", [1, 2, 3, 4])
@given(out=sizes, inputs=sizes, place=st.tuples(sizes, sizes))
def test_a_coefficient_is_one_wavelet_in_the_middle(
    moments: int, out: int, inputs: int, place: tuple[int, int]
) -> None:
    row, column = place[0] % out, place[1] % inputs
    more = 2 * moments - 2
    grid = (out + more + (out + more) % 2, inputs + more + (inputs + more) % 2)
    places = np.array([[row], [column]])
    found = wavelet_update(np.array([2.0]), places, BaseSizes(inputs, out), moments)
    offsets = [(whole - size) // 2 for whole, size in zip(grid, (out, inputs), strict=True)]
    wave = one_wave(row + offsets[0], column + offsets[1], grid, moments)
    start = [(wave.shape[0] - out) // 2, (wave.shape[1] - inputs) // 2]
    expected = 2 * wave[start[0] : start[0] + out, start[1] : start[1] + inputs]
    assert np.abs(found - expected).max() <= TINY


def test_without_a_transform_the_coefficients_stay_where_they_are() -> None:
    fields = {"n_frequency": 6, "scaling": 0.5, "use_idwt": False, "wavelet_family": "coif9"}
    values = np.arange(6.0)
    held = checkpoint("WAVEFT", spectrum("WAVEFT", values), **fields)
    found = dense(WAVE, held, SmallBase({Q: np.zeros((2, 3))}))
    rows, columns = fourierft_indices(777, 2, 3, 6)
    np.testing.assert_array_equal(found.delta[rows, columns], 0.5 * values)


def test_the_file_tells_no_sizes() -> None:
    described = FOURIER.describe(checkpoint("FOURIERFT", spectrum("FOURIERFT", np.ones(1000))))
    shape = described.shapes[Q]
    assert (shape.in_features, shape.out_features, shape.need) == (None, None, Need.SIZES)


@pytest.mark.parametrize("family", ["haar", "sym4", "coif4", "db11"])
def test_wavelets_that_were_not_compared_are_refused(family: str) -> None:
    held = checkpoint("WAVEFT", spectrum("WAVEFT", np.ones(4)), wavelet_family=family)
    with pytest.raises(UnsupportedAdapterError, match=f"is '{family}', expected one of db1, db2, "):
        WAVE.describe(held)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("FOURIERFT", {}, 1000),
        ("FOURIERFT", {"n_frequency": 7, "n_frequency_pattern": {"q_proj": 5}}, 5),
        ("FOURIERFT", {"n_frequency": 7, "n_frequency_pattern": {"proj": 5}}, 7),
        ("WAVEFT", {}, 2592),
        ("WAVEFT", {"n_frequency": 7, "n_frequency_pattern": {"q_proj": 5}}, 5),
    ],
)
def test_the_number_of_coefficients_is_the_configurations(
    kind: str, fields: dict[str, Any], expected: int
) -> None:
    rule = FOURIER if kind == "FOURIERFT" else WAVE
    rule.describe(checkpoint(kind, spectrum(kind, np.ones(expected)), **fields))
    message = f"{kind.lower()}_spectrum has 3 values, expected {expected} from the configuration"
    with pytest.raises(AdapterError, match=message) as caught:
        rule.describe(checkpoint(kind, spectrum(kind, np.ones(3)), **fields))
    assert caught.value.where.module == Q


def test_proportional_modules_have_numbers_of_their_own() -> None:
    held = checkpoint("WAVEFT", spectrum("WAVEFT", np.ones(3)), proportional_parameters=True)
    WAVE.describe(held)


def test_more_coefficients_than_entries_are_refused() -> None:
    held = checkpoint("FOURIERFT", spectrum("FOURIERFT", np.ones(7)), n_frequency=7)
    with pytest.raises(AdapterError, match="n_frequency is 7, expected at most the 6 entries") as e:
        dense(FOURIER, held, SmallBase({Q: np.zeros((2, 3))}))
    assert e.value.where.module == Q
