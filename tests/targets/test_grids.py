"""Encodings as grids of ONNX: the same real values, in a container that an engine has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import EncodingsError, Where
from lora_quant.graph.quantized.grid import Grid
from lora_quant.targets.quantized.grids import activation_grid, onnx_grid

HERE = Where(tensor="w", use_case="tone")


def grid_of(encoding: Encoding, shape: tuple[int, ...] = (8, 6)) -> Grid:
    grid = onnx_grid(encoding, shape)
    assert grid is not None
    return grid


@pytest.mark.parametrize(
    ("bits", "symmetric", "dtype"),
    [
        (2, True, "int8"),
        (4, True, "int8"),
        (8, True, "int8"),
        (8, False, "uint8"),
        (12, True, "int16"),
        (16, True, "int16"),
        (16, False, "uint16"),
        (9, False, "uint16"),
        (32, True, "int32"),
    ],
)
def test_codes_are_stored_in_the_smallest_type_of_their_sign(
    bits: int, symmetric: bool, dtype: str
) -> None:
    encoding = Encoding.per_tensor(0.5, -(2.0 ** (bits - 1)), bits=bits, symmetric=symmetric)
    grid = grid_of(encoding)
    assert grid.dtype == dtype
    assert grid.zero_point.dtype == dtype
    assert grid.scale.dtype == np.float32
    assert grid.scale.shape == grid.zero_point.shape == (1,)


@given(
    st.integers(2, 16),
    st.booleans(),
    st.integers(0, 2**16 - 1),
    st.sampled_from([2.0**-10, 0.5, 3.0]),
)
def test_the_ends_of_the_grid_are_the_encodings(
    bits: int, symmetric: bool, low: int, scale: float
) -> None:
    """x = (q + offset) * scale with q from 0 to 2**bits - 1; all numbers are exact here."""
    offset = -float(min(low, 2**bits - 1))
    encoding = Encoding.per_tensor(scale, offset, bits=bits, symmetric=symmetric)
    grid = grid_of(encoding)
    first = -(2 ** (bits - 1)) if symmetric else 0
    ends = np.array([first, first + 2**bits - 1])
    assert np.iinfo(grid.dtype).min <= ends[0]
    assert ends[1] <= np.iinfo(grid.dtype).max
    real = (ends - grid.zero_point.astype(int)) * grid.scale.astype(float)
    assert real.tolist() == [offset * scale, (offset + 2**bits - 1) * scale]


def test_channels_keep_their_axis() -> None:
    encoding = Encoding.per_channel([0.5, 1, 2], [-3, -4, -5], bits=8, symmetric=False, axis=-1)
    grid = grid_of(encoding, (2, 3))
    assert (grid.axis, grid.block_size) == (1, None)
    assert grid.scale.tolist() == [0.5, 1, 2]
    assert grid.zero_point.tolist() == [3, 4, 5]


def test_one_channel_is_still_along_its_axis() -> None:
    grid = grid_of(Encoding.per_channel([0.5], bits=8, symmetric=True, axis=1), (8, 1))
    assert grid.axis == 1
    assert grid.scale.shape == (1,)


@pytest.mark.parametrize(
    ("axis", "block_axis", "shape", "expected"),
    [
        (1, 0, (4, 3), [[1, 3, 5], [2, 4, 6]]),
        (0, 1, (3, 4), [[1, 2], [3, 4], [5, 6]]),
    ],
)
def test_blocks_are_in_the_axes_of_the_weight(
    axis: int, block_axis: int, shape: tuple[int, int], expected: list[list[int]]
) -> None:
    encoding = Encoding.per_block(
        [[1, 2], [3, 4], [5, 6]],
        bits=8,
        symmetric=True,
        block_size=2,
        axis=axis,
        block_axis=block_axis,
        ndim=2,
    )
    grid = grid_of(encoding, shape)
    assert (grid.axis, grid.block_size) == (block_axis, 2)
    assert grid.scale.tolist() == expected
    assert grid.zero_point.tolist() == np.zeros_like(expected).tolist()


def test_blocks_of_a_kernel_repeat_over_its_positions() -> None:
    encoding = Encoding.per_block(
        [[1, 2]], bits=8, symmetric=True, block_size=2, axis=0, block_axis=1, ndim=4
    )
    grid = grid_of(encoding, (1, 4, 3, 2))
    assert grid.scale.shape == (1, 2, 3, 2)
    assert np.array_equal(grid.scale[0, 1], np.full((3, 2), 2, np.float32))


def test_the_scales_of_lpbq_are_multiplied() -> None:
    encoding = Encoding.lpbq(
        [0.5, 0.25],
        [[1, 16], [3, 4]],
        compressed_bits=4,
        bits=8,
        block_size=4,
        axis=0,
        block_axis=1,
        ndim=2,
    )
    grid = grid_of(encoding, (2, 8))
    assert grid.dtype == "int8"
    assert grid.scale.tolist() == [[0.5, 8], [0.75, 1]]
    assert not grid.zero_point.any()


def test_half_steps_are_whole_steps_of_half_the_scale() -> None:
    """-1.5, -0.5, 0.5 and 1.5 times 0.5: odd codes around a zero point that is a code as well."""
    grid = grid_of(Encoding.per_tensor(0.5, -1.5, bits=2, symmetric=True))
    assert grid.dtype == "int8"
    assert grid.scale.tolist() == [0.25]
    codes = 2 * np.array([-2, -1, 0, 1])
    real = (codes - grid.zero_point.astype(int)) * grid.scale
    assert real.tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_floats_have_no_grid() -> None:
    assert onnx_grid(Encoding.floating(16), (8, 6)) is None
    assert activation_grid(Encoding.floating(16)) is None


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (Encoding.per_tensor(1e-39, bits=8, symmetric=True), "a scale is 1e-39, .* full precision"),
        (Encoding.per_channel([1.0] * 5, bits=8, symmetric=True, axis=1), "5 channels on axis 1"),
        (Encoding.per_channel([1.0] * 6, bits=8, symmetric=True), "channel axis .* is not known"),
        (Encoding.per_tensor(1.0, -1.0, bits=32, symmetric=True), "32 bits with a zero point"),
        (Encoding.per_tensor(1.0, 0.0, bits=17, symmetric=False), "17 bits with a zero point"),
    ],
)
def test_what_is_no_grid_of_onnx_is_refused_with_its_tensor(encoding: Encoding, text: str) -> None:
    with pytest.raises(EncodingsError, match=text) as caught:
        onnx_grid(encoding, (8, 6), where=HERE)
    assert caught.value.where == HERE
    assert caught.value.hint or "channels" in text


def test_a_scale_that_rounds_below_the_normal_numbers_is_refused() -> None:
    smallest = float(np.finfo(np.float32).smallest_normal)
    assert grid_of(Encoding.per_tensor(smallest, bits=8, symmetric=True)).scale[0] == smallest
    with pytest.raises(EncodingsError, match="full precision"):
        onnx_grid(Encoding.per_tensor(smallest * 0.99, bits=8, symmetric=True), ())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_activations_of_whole_containers_have_a_grid(bits: int, symmetric: bool) -> None:
    encoding = Encoding.per_tensor(0.5, -7.0, bits=bits, symmetric=symmetric)
    grid = activation_grid(encoding)
    assert grid is not None
    first = int(np.iinfo(grid.dtype).min)
    assert first - int(grid.zero_point[0]) == -7


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (Encoding.per_tensor(1.0, bits=4, symmetric=True), "quantized to 4 bits"),
        (Encoding.per_tensor(1.0, -1.5, bits=2, symmetric=True), "quantized to 2 bits"),
        (Encoding.per_channel([1.0], bits=8, symmetric=True, axis=0), "is PER_CHANNEL"),
    ],
)
def test_activations_that_no_operator_clips_are_refused(encoding: Encoding, text: str) -> None:
    with pytest.raises(EncodingsError, match=text) as caught:
        activation_grid(encoding, where=HERE)
    assert caught.value.where == HERE
    assert caught.value.hint
