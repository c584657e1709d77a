"""Ranks of one size: A and B that give the same product, in any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lora_quant.targets.onnxruntime.balanced_ranks import balance_ranks

Array = NDArray[Any]
RANKS = 3
VALUES = st.floats(-1e3, 1e3, width=32)
# As MatMul and as Conv store them: the axes of the ranks, and the shapes.
LAYOUTS = {
    "matmul": (1, 0, (4, RANKS), (RANKS, 5)),
    "conv": (0, 1, (RANKS, 4, 2), (5, RANKS, 1)),
}


def products(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    """B_r A_r of every rank, float64."""
    left = np.moveaxis(b.astype(np.float64), axis_of_b, 0).reshape(RANKS, -1)
    right = np.moveaxis(a.astype(np.float64), axis_of_a, 0).reshape(RANKS, -1)
    result: Array = left[:, :, None] * right[:, None, :]
    return result


def peaks(b: Array, axis: int) -> Array:
    result: Array = np.abs(np.moveaxis(b, axis, 0).reshape(RANKS, -1)).max(axis=1)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_every_rank_gives_what_it_gave(layout: str, data: st.DataObject) -> None:
    """Two values are rounded to float32: each by 2**-24 of it, or by half the smallest number."""
    axis_of_a, axis_of_b, shape_of_a, shape_of_b = LAYOUTS[layout]
    a = data.draw(arrays(np.float32, shape_of_a, elements=VALUES))
    b = data.draw(arrays(np.float32, shape_of_b, elements=VALUES))
    new_a, new_b = balance_ranks(a, b, axis_of_a, axis_of_b)
    assert new_a.dtype == new_b.dtype == np.float32
    before = products(a, b, axis_of_a, axis_of_b)
    after = products(new_a, new_b, axis_of_a, axis_of_b)
    least = 2.0**-150 * 64 * 1e3
    assert (np.abs(after - before) <= 2.0**-22 * np.abs(before) + 2 * least).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_of_b_get_one_size_and_ranks_of_zeros_stay(layout: str) -> None:
    axis_of_a, axis_of_b, shape_of_a, shape_of_b = LAYOUTS[layout]
    random = np.random.default_rng(0)
    a = random.standard_normal(shape_of_a).astype(np.float32)
    b = random.standard_normal(shape_of_b).astype(np.float32)
    wide = np.expand_dims([8.0, 0.5, 0.0], [i for i in range(b.ndim) if i != axis_of_b])
    b = (b * wide).astype(np.float32)
    new_a, new_b = balance_ranks(a, b, axis_of_a, axis_of_b)
    first, second, third = peaks(new_b, axis_of_b)
    assert abs(first / second - 1) <= 2.0**-22  # four roundings of at most 2**-24
    assert third == 0
    last = (slice(None),) * axis_of_a + (2,)
    np.testing.assert_array_equal(new_a[last], a[last])


def test_without_values_nothing_changes() -> None:
    a, b = np.ones((4, RANKS), np.float16), np.zeros((RANKS, 5), np.float16)
    new_a, new_b = balance_ranks(a, b, 1, 0)
    assert new_a is a
    assert new_b is b


def test_what_a_gives_grows_no_more_than_float16_can_take() -> None:
    b = np.array([[1e3], [1e-4]], np.float16)
    a, _ = balance_ranks(np.ones((1, 2), np.float16), b, 1, 0)
    assert a.tolist() == [[64.0, 1 / 64]]
