"""Grids of products and sums: whatever both sides hold, the result holds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.products import holding_one, holds_one, in_structure, plus, sum_of, times
from lora_quant.encodings.quantize import dequantize, quantize
from lora_quant.errors import EncodingsError

REACH = st.floats(-100, 100, allow_nan=False, width=32)
FACTORS = st.tuples(REACH, REACH).map(lambda pair: (min(pair), max(pair)))
# Rounding the offset of an asymmetric grid moves an end by half a step; the rest is of doubles.
HALF_STEP = 0.5 + 1e-9


@st.composite
def grids(draw: st.DrawFn) -> Encoding:
    low, high = draw(st.floats(-100, 0)), draw(st.floats(0, 100))
    bits, symmetric = draw(st.sampled_from([4, 8, 16])), draw(st.booleans())
    return from_range(low, high, bits=bits, symmetric=symmetric)


def ends(grid: Encoding) -> tuple[float, float]:
    return float(grid.minimum), float(grid.maximum)


@given(grids(), FACTORS)
def test_a_product_covers_every_pair_of_ends(grid: Encoding, factors: tuple[float, float]) -> None:
    made = times(grid, *factors)
    slack = HALF_STEP * float(made.stored_scale)
    for value in ends(grid):
        for factor in factors:
            assert ends(made)[0] - slack <= value * factor <= ends(made)[1] + slack
    assert (made.bits, made.symmetric) == (grid.bits, grid.symmetric)


@given(grids(), st.floats(0.01, 100))
def test_a_positive_factor_keeps_the_offset(grid: Encoding, factor: float) -> None:
    made = times(grid, 0.0, factor)
    assert float(made.stored_offset) == float(grid.stored_offset)
    assert float(made.stored_scale) == float(grid.stored_scale) * factor


@given(grids(), FACTORS)
def test_a_sum_covers_every_pair_of_ends(grid: Encoding, added: tuple[float, float]) -> None:
    made = plus(grid, *added)
    slack = HALF_STEP * float(made.stored_scale)
    for value in ends(grid):
        for other in added:
            assert ends(made)[0] - slack <= value + other <= ends(made)[1] + slack


@given(st.lists(st.tuples(st.floats(-100, 0), st.floats(0, 100)), min_size=2, max_size=4))
def test_a_sum_of_tensors_reaches_from_end_to_end(ranges: list[tuple[float, float]]) -> None:
    added = [from_range(low, high, bits=16) for low, high in ranges]
    made = sum_of(added)
    slack = HALF_STEP * float(made.stored_scale)
    lows, highs = zip(*map(ends, added), strict=True)
    assert abs(ends(made)[0] - sum(lows)) <= slack
    assert abs(ends(made)[1] - sum(highs)) <= slack


def test_a_sum_needs_grids_of_one_structure_per_tensor() -> None:
    whole = from_range(-1.0, 2.0, bits=8)
    with pytest.raises(EncodingsError, match="cannot share one grid"):
        sum_of([whole, from_range(-1.0, 2.0, bits=16)])
    columns = from_range([-1.0, -2.0], [1.0, 2.0], bits=8)
    with pytest.raises(EncodingsError, match="needs grids per tensor"):
        sum_of([columns, columns])
    assert sum_of([columns]) is columns
    floats = Encoding.floating(16)
    assert sum_of([floats, floats]) is floats


@given(grids())
def test_what_changes_nothing_keeps_the_grid(grid: Encoding) -> None:
    assert times(grid, 1.0, 1.0) is grid
    assert plus(grid, 0.0, 0.0) is grid


@given(grids())
def test_a_grid_that_holds_one_gives_one_back(grid: Encoding) -> None:
    """1 / n is rounded to float32, so that n of them are 1 within 2**-24."""
    made = holding_one(grid)
    if grid.bits == 4 and max(map(abs, ends(grid))) > 3:
        return  # too coarse to have 1 on it
    assert abs(float(dequantize(made, quantize(made, 1.0))) - 1.0) <= 2.0**-24
    assert float(dequantize(made, quantize(made, 0.0))) == 0.0
    # A count that is whole but for 2**-20 is rounded up; float32 adds 2**-24.
    room = 2.0**-19 * max(1.0, *map(abs, ends(grid)))
    assert ends(made)[0] <= ends(grid)[0] + room
    assert ends(made)[1] >= max(1.0, ends(grid)[1]) - room
    assert (made.bits, made.symmetric) == (grid.bits, grid.symmetric)


def test_a_grid_that_holds_one_is_left_alone() -> None:
    grid = Encoding.per_tensor(0.02, bits=8, symmetric=True)
    assert holds_one(grid)
    assert holding_one(grid) is grid
    assert not holds_one(Encoding.per_tensor(0.03, bits=8, symmetric=True))
    assert not holds_one(Encoding.per_tensor(0.002, bits=8, symmetric=True))


@given(grids())
def test_holding_one_twice_is_holding_it_once(grid: Encoding) -> None:
    once = holding_one(grid)
    assert holding_one(once).same_grid(once)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_ones_alone_have_the_grid_of_their_range(bits: int) -> None:
    half = 2 ** (bits - 1)
    made = holding_one(from_range(1.0, 1.0, bits=bits, symmetric=True, single=True))
    assert float(made.stored_scale) == float(np.float32(1 / (half - 1)))


def test_a_grid_of_steps_above_one_stays_as_it_is() -> None:
    grid = from_range(-1000.0, 1000.0, bits=8, symmetric=True)
    assert holding_one(grid).same_grid(grid)


def test_every_channel_holds_one() -> None:
    grid = from_range(np.array([-0.5, -3.0]), np.array([1.5, 2.0]), bits=8, symmetric=True, axis=0)
    made = holding_one(grid)
    counts = 1.0 / made.stored_scale
    assert np.allclose(counts, np.rint(counts), rtol=2.0**-23, atol=0)
    assert counts.tolist() == pytest.approx([84, 42], rel=2.0**-23)  # 127 / 1.5, 128 / 3


@given(grids(), grids())
def test_a_grid_in_another_structure_covers_its_range(one: Encoding, other: Encoding) -> None:
    made = in_structure(one, other)
    slack = HALF_STEP * float(made.stored_scale)
    assert made.structure.first_difference(other.structure) is None
    assert ends(made)[0] - slack <= ends(one)[0]
    assert ends(made)[1] + slack >= ends(one)[1]


def test_what_stays_in_float_stays_in_float() -> None:
    single = Encoding.floating(32)
    grid = from_range(-1.0, 1.0, bits=8)
    for made in (times(single, 0.0, 2.0), plus(single, 0.0, 2.0), holding_one(single)):
        assert made is single
    assert in_structure(grid, single) is single
    assert in_structure(single, grid) is grid
