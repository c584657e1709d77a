"""BOFT against permutations and blocks written out as matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.boft import BoftRule, butterfly
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, dense, of_module

RULE = BoftRule()
# Sums of at most 16 products, three layers of rotations, which keep lengths; values below 64.
TINY = 3 * 16 * 4 * 2.0**-53 * 64


def permutation(count: int, size: int, layer: int) -> Array:
    """Within each 2**layer blocks: the even half-blocks in order, then the odd ones."""
    width, half = size * 2**layer, size // 2
    P = np.zeros((count * size,) * 2)
    for start in range(0, count * size, width):
        pieces = list(range(width // half))
        for to, piece in enumerate(pieces[::2] + pieces[1::2]):
            for k in range(half):
                P[start + to * half + k, start + piece * half + k] = 1
    return P


def rotation(blocks: Array) -> Array:
    count, size, _ = blocks.shape
    full = np.zeros((count * size,) * 2)
    one = np.eye(size)
    for n, block in enumerate(blocks):
        S = (block - block.T) / 2
        full[n * size : (n + 1) * size, n * size : (n + 1) * size] = (one - S) @ np.linalg.inv(
            one + S
        )
    return full


@given(layers=st.integers(1, 3), half=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_layers_of_blocks_turn_the_inputs_one_after_the_other(
    layers: int, half: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size, count = 2 * half, 4
    weight = rng.normal(size=(3, count * size))
    R, s = rng.normal(size=(layers, count, size, size)), rng.normal(size=(3, 1))
    held = checkpoint("BOFT", of_module({"boft_R": R, "boft_s": s}), boft_block_size=size)
    found = dense(RULE, held, SmallBase({Q: weight}))
    whole = np.eye(count * size)
    for layer in range(layers):
        P = permutation(count, size, layer) if layers > 1 else np.eye(count * size)
        whole = P @ rotation(R[layer]) @ P.T @ whole
    expected = s * (whole @ weight.T).T
    assert np.abs(weight + found.delta - expected).max() <= TINY


@given(count=st.sampled_from([4, 8]), size=st.sampled_from([2, 6]), layer=st.integers(0, 2))
def test_a_butterfly_is_its_permutation(count: int, size: int, layer: int) -> None:
    order = butterfly(count, size, layer, 3)
    x = np.arange(count * size)
    np.testing.assert_array_equal(x[order], permutation(count, size, layer) @ x)


def test_a_convolution_has_its_scales_in_a_row() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(3, 2, 2, 1))
    R, s = rng.normal(size=(1, 2, 2, 2)), rng.normal(size=(1, 3))
    held = checkpoint("BOFT", of_module({"boft_R": R, "boft_s": s}))
    found = dense(RULE, held, SmallBase({Q: weight}))
    expected = s.T * (weight.reshape(3, 4) @ rotation(R[0]).T)
    assert np.abs((weight + found.delta).reshape(3, 4) - expected).max() <= TINY


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 2, 2, 3), (3, 1)), r"boft_R has blocks of \[2, 3\], expected square ones"),
        (((1, 2, 2, 2), (3, 2)), r"boft_s has shape \[3, 2\], expected \[out, 1\] or \[1, out\]"),
        (((2, 3, 2, 2), (3, 1)), "2 layers of 3 blocks of 2, expected an even size and a mult"),
        (((2, 2, 3, 3), (3, 1)), "2 layers of 2 blocks of 3, expected an even size"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    tensors = {"boft_R": np.ones(shapes[0]), "boft_s": np.ones(shapes[1])}
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("BOFT", of_module(tensors)))
    assert caught.value.where.module == Q


@pytest.mark.parametrize("shape", [(3, 5), (2, 4)])
def test_a_base_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    tensors = {"boft_R": np.ones((1, 2, 2, 2)), "boft_s": np.ones((3, 1))}
    with pytest.raises(AdapterError, match="the base's weight has"):
        dense(RULE, checkpoint("BOFT", of_module(tensors)), SmallBase({Q: np.ones(shape)}))
