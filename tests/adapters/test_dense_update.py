"""A scaled module as one update of W and b: the same outputs for every input."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.lowered import Lowered
from lora_quant.adapters.maths.dense_update import dense_update


@given(
    rows=st.integers(1, 4),
    inputs=st.integers(1, 4),
    rank=st.integers(0, 2),
    has=st.sets(st.sampled_from("ghc")),
    data=st.data(),
)
def test_a_linear_module_computes_the_same(
    rows: int, inputs: int, rank: int, has: set[str], data: st.DataObject
) -> None:
    """Whole numbers of at most 4 and three factors stay far below 2**53: all sums are exact."""
    numbers = st.integers(-4, 4)

    def drawn(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        size = int(np.prod(shape))
        listed = data.draw(st.lists(numbers, min_size=size, max_size=size))
        return np.array(listed, np.float64).reshape(shape)

    W, b, x = drawn(rows, inputs), drawn(rows), drawn(inputs)
    A, B, s = drawn(rank, inputs), drawn(rows, rank), drawn(rank)
    g = drawn(rows) if "g" in has else None
    h = drawn(inputs) if "h" in has else None
    c = drawn(rows) if "c" in has else None
    y = W @ (x if h is None else h * x) + b
    y = (y if g is None else g * y) + B @ (s * (A @ x)) + (0 if c is None else c)
    found = dense_update(Lowered(A, B, s, g=g, h=h, c=c), W, b, BaseSizes(inputs, rows))
    np.testing.assert_array_equal(
        (W + found.delta) @ x + b + (0 if found.c is None else found.c), y
    )


def test_each_group_of_a_convolution_reads_its_own_inputs() -> None:
    W = np.ones((4, 2, 3))
    h = np.array([1.0, 2.0, 3.0, 4.0])
    lowered = Lowered(np.zeros((0, 2, 3)), np.zeros((4, 0)), np.zeros(0), h=h)
    found = dense_update(lowered, W, np.zeros(4), BaseSizes(4, 4, (3,), groups=2))
    merged = W + found.delta
    np.testing.assert_array_equal(merged[:2, :, 0], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(merged[2:, :, 0], [[3, 4], [3, 4]])
    assert found.c is None


def test_what_is_given_is_not_changed() -> None:
    W, b, g = np.ones((2, 2)), np.ones(2), np.full(2, 3.0)
    dense_update(
        Lowered(np.zeros((0, 2)), np.zeros((2, 0)), np.zeros(0), g=g), W, b, BaseSizes(2, 2)
    )
    assert (W == 1).all()
    assert (b == 1).all()
