"""Codes of weights against the formula of the encodings, and subsets of ranks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import EncodingsError, Where
from lora_quant.targets.quantized.quantized_values import (
    QuantizedValues,
    computed_values,
    quantize_values,
    take_grid_ranks,
    take_ranks,
)

Array = NDArray[Any]
SHAPE = (8, 6)
HERE = Where(tensor="w")


def over_elements(array: Array, axis: int | None, block_size: int | None) -> Array:
    """What belongs to each element of a matrix."""
    if block_size is not None:
        return np.repeat(array, block_size, axis=axis)
    return array[:, np.newaxis] if axis == 0 else array


def real(values: QuantizedValues) -> Array:
    grid = values.grid
    zero = over_elements(grid.zero_point.astype(np.int64), grid.axis, grid.block_size)
    scale = over_elements(grid.scale.astype(np.float64), grid.axis, grid.block_size)
    return np.asarray((values.codes.astype(np.int64) - zero) * scale)


def made(kind: str, bits: int, symmetric: bool, random: np.random.Generator) -> Encoding:
    """Scales that float32 holds exactly, so that nothing is rounded but steps."""

    def scale(*shape: int) -> Array:
        return random.uniform(1e-3, 1e-1, shape).astype(np.float32)

    def offset(*shape: int) -> Array:
        return -random.integers(0, 2**bits, shape).astype(float)

    if kind == "tensor":
        return Encoding.per_tensor(scale(1)[0], offset(1)[0], bits=bits, symmetric=symmetric)
    if kind in ("rows", "columns"):
        axis = int(kind == "columns")
        n = SHAPE[axis]
        return Encoding.per_channel(scale(n), offset(n), bits=bits, symmetric=symmetric, axis=axis)
    if kind == "blocks":
        return Encoding.per_block(
            scale(6, 4),
            offset(6, 4),
            bits=bits,
            symmetric=symmetric,
            block_size=2,
            axis=1,
            block_axis=0,
            ndim=2,
        )
    return Encoding.lpbq(
        scale(6),
        random.integers(1, 17, (6, 4)),
        compressed_bits=4,
        bits=8,
        block_size=2,
        axis=1,
        block_axis=0,
        ndim=2,
    )


def expected(encoding: Encoding, values: Array) -> Array:
    """x = (clip(round(v / s) - o, 0, 2**bits - 1) + o) * s, element by element."""
    result = np.zeros(values.shape)
    bits = encoding.compressed_bits or encoding.bits
    for (i, j), value in np.ndenumerate(values):
        at: Any = {
            "PER_TENSOR": (),
            "PER_CHANNEL": ((i, j)[encoding.axis or 0],),
            "PER_BLOCK": (j, i // 2),
            "LPBQ": (j,),
        }[encoding.granularity.value]
        s = float(encoding.stored_scale[at])
        o = float(encoding.stored_offset[at])
        if encoding.block_scale is not None:
            s, o = s * float(encoding.block_scale[j, i // 2]), -8.0
        steps = round(float(value) / s) - o
        result[i, j] = (min(max(steps, 0), 2**bits - 1) + o) * s
    return result


@given(
    st.sampled_from(["tensor", "rows", "columns", "blocks", "lpbq"]),
    st.sampled_from([2, 4, 7, 8, 9, 12, 16]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_codes_stand_for_the_values_of_the_encoding(
    kind: str, bits: int, symmetric: bool, seed: int
) -> None:
    """Both sides multiply the same whole number by the same scale in float64: exactly equal.

    The scale of LPBQ is a float32 times at most 16, rounded to float32 in the grid: 2**-24.
    """
    random = np.random.default_rng(seed)
    encoding = made(kind, bits, symmetric, random)
    values = random.normal(size=SHAPE).astype(np.float32)
    got = quantize_values(values, encoding)
    wanted = expected(encoding, values)
    assert np.abs(real(got) - wanted).max() <= 2.0**-24 * np.abs(wanted).max()
    if kind != "lpbq":
        assert np.array_equal(real(got), wanted)
    assert got.codes.dtype == got.grid.dtype
    used = encoding.compressed_bits or bits
    first = -(2 ** (used - 1)) if encoding.symmetric else 0
    assert got.codes.min() >= first
    assert got.codes.max() < first + 2**used


def test_four_bits_in_eight_stay_four_bits() -> None:
    encoding = Encoding.per_tensor(0.5, bits=4, symmetric=True)
    got = quantize_values(np.array([-9.0, -0.5, 0.0, 3.5, 9.0]), encoding)
    assert got.codes.tolist() == [-8, -1, 0, 7, 7]


def test_half_steps_are_exact_and_zeros_stay_zero() -> None:
    encoding = Encoding.per_tensor(0.5, -1.5, bits=2, symmetric=True)
    got = quantize_values(np.array([[-9.0, -0.3, 0.0, 0.3, 9.0]]), encoding)
    assert real(got).tolist() == [[-0.75, -0.25, 0.0, 0.25, 0.75]]


def test_a_float_encoding_has_no_codes() -> None:
    with pytest.raises(EncodingsError, match="floating point of 16 bits") as caught:
        quantize_values(np.ones(3), Encoding.floating(16), where=HERE)
    assert caught.value.where == HERE


@given(st.sampled_from(["int8", "int16"]), st.sampled_from([0, 1]), st.integers(0, 2**32 - 1))
def test_computed_grids_are_off_by_half_a_step_of_their_channel(
    dtype: Literal["int8", "int16"], axis: int, seed: int
) -> None:
    """Half a step of max / (2**(bits - 1) - 1), or of the least range, 1e-5.

    A scale that is rounded to float32 ends 2**-24 of the range too early at most.
    """
    random = np.random.default_rng(seed)
    values = random.normal(size=SHAPE).astype(np.float32)
    values *= 10.0 ** random.integers(-9, 3)
    got = computed_values(values, dtype, axis)
    assert (got.grid.dtype, got.grid.axis) == (dtype, axis)
    assert not got.grid.zero_point.any()
    most = np.abs(values).max(axis=1 - axis, keepdims=True).astype(np.float64)
    steps = np.iinfo(dtype).max
    step = np.maximum(most / steps, 1.01e-5 / (2 * steps + 1))
    assert (np.abs(real(got) - values) <= step / 2 + most * 2.0**-24).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_have_no_grid(value: float) -> None:
    with pytest.raises(EncodingsError, match="not finite") as caught:
        computed_values(np.full(SHAPE, value), "int8", 0, where=HERE)
    assert caught.value.where == HERE


@given(
    st.sampled_from(["tensor", "rows", "columns"]),
    st.sampled_from([0, 1, -1]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_ranks_are_taken_with_their_scales(
    kind: str, axis: int, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    whole = quantize_values(random.normal(size=SHAPE), made(kind, 8, False, random))
    ranks = data.draw(st.lists(st.integers(0, SHAPE[axis] - 1), min_size=1, unique=True))
    taken = take_ranks(whole, axis, ranks)
    assert np.array_equal(real(taken), np.take(real(whole), ranks, axis=axis))
    assert taken.codes.flags.c_contiguous
    assert taken.grid.scale.shape == taken.grid.zero_point.shape


@given(st.lists(st.integers(0, 5), min_size=1, unique=True), st.integers(0, 2**32 - 1))
def test_ranks_across_blocks_take_the_blocks_of_their_column(ranks: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = quantize_values(random.normal(size=SHAPE), made("blocks", 8, True, random))
    taken = take_ranks(whole, 1, ranks)
    assert np.array_equal(real(taken), real(whole)[:, ranks])


@given(st.lists(st.integers(0, 7), min_size=1), st.integers(0, 2**32 - 1))
def test_whole_blocks_of_ranks_can_be_taken(ranks: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = quantize_values(random.normal(size=SHAPE), made("blocks", 8, True, random))
    blocks = [
        rank for start in sorted({rank // 2 * 2 for rank in ranks}) for rank in (start, start + 1)
    ]
    taken = take_ranks(whole, 0, blocks)
    assert np.array_equal(real(taken), real(whole)[blocks])


@pytest.mark.parametrize("ranks", [[0], [1, 2], [0, 1, 2], [1, 0], [0, 2]])
def test_a_cut_block_is_refused(ranks: list[int]) -> None:
    random = np.random.default_rng(0)
    whole = quantize_values(random.normal(size=SHAPE), made("blocks", 8, True, random))
    with pytest.raises(EncodingsError, match="cut the blocks of 2 ranks"):
        take_grid_ranks(whole.grid, 0, ranks)
