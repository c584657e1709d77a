"""HRA against reflections one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.hra import HraRule, wy_triangle
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, lowered, of_module, update

RULE = HraRule()
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)
# Reflections do not grow errors: at most 6 of them, sums of 6 * 6 products, values below 8.
TINY = 6 * 36 * 4 * 2.0**-53 * 8


def reflected(weight: Array, u: Array) -> Array:
    for column in u.T:
        normal = column / np.sqrt(np.sum(column**2))
        weight = weight - 2 * np.outer(weight @ normal, normal)
    return weight


@given(n=sizes, rank=sizes, seed=seeds)
def test_the_compact_form_is_the_product_of_the_reflections(n: int, rank: int, seed: int) -> None:
    U = np.random.default_rng(seed).normal(size=(n, rank))
    U /= np.sqrt(np.sum(U**2, axis=0))
    T = wy_triangle(U)
    np.testing.assert_array_equal(T, np.triu(T))
    assert np.abs(np.eye(n) - U @ T @ U.T - reflected(np.eye(n), U)).max() <= TINY


@given(out=sizes, inputs=sizes, rank=sizes, seed=seeds)
def test_the_weight_is_reflected(out: int, inputs: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, u = rng.normal(size=(out, inputs)), rng.normal(size=(inputs, rank))
    held = checkpoint("HRA", of_module({"hra_u": u}), r=rank)
    found = lowered(RULE, held, SmallBase({Q: weight}))
    assert np.abs(weight + update(found) - reflected(weight, u)).max() <= TINY


@pytest.mark.parametrize("apply_gs", [False, True])
def test_the_kernel_of_a_convolution_is_flattened(apply_gs: bool) -> None:
    rng = np.random.default_rng(2)
    weight, u = rng.normal(size=(5, 3, 2, 2)), rng.normal(size=(12, 3))
    held = checkpoint("HRA", of_module({"hra_u": u}), r=3, apply_GS=apply_gs)
    shape = RULE.describe(held).shapes[Q]
    assert (shape.in_features, shape.out_features, shape.kernel) == (12, None, None)
    assert shape.need is Need.WEIGHT
    if apply_gs:
        # orthogonal reflections; the signs of the columns of Q cancel
        u = np.linalg.qr(u)[0]
    expected = reflected(weight.reshape(5, 12), u)
    found = lowered(RULE, held, SmallBase({Q: weight}))
    assert np.abs(weight.reshape(5, 12) + update(found) - expected).max() <= TINY


@pytest.mark.parametrize(
    ("u", "apply_gs", "message"),
    [
        ([[1, 1], [2, 2]], True, "column 1 of hra_u depends on those before it"),
        ([[1, 0], [2, 0]], True, "column 1 of hra_u is zero"),
        ([[0, 1], [0, 1]], False, "column 0 of hra_u is zero"),
    ],
)
def test_a_direction_that_is_rounding_is_refused(
    u: list[list[float]], apply_gs: bool, message: str
) -> None:
    tensors = of_module({"hra_u": np.array(u, np.float32)})
    held = checkpoint("HRA", tensors, r=2, apply_GS=apply_gs)
    with pytest.raises(AdapterError, match=message):
        lowered(RULE, held, SmallBase({Q: np.ones((3, 2))}))


def test_equal_pairs_are_fine_without_gram_schmidt() -> None:
    held = checkpoint("HRA", of_module({"hra_u": np.ones((3, 2))}), r=2)
    found = lowered(RULE, held, SmallBase({Q: np.ones((2, 3))}))
    assert np.abs(update(found)).max() <= TINY


def test_a_base_of_another_width_is_refused() -> None:
    held = checkpoint("HRA", of_module({"hra_u": np.ones((3, 2))}), r=2)
    with pytest.raises(AdapterError, match="the base's weight has 4 columns, expected 3 from"):
        lowered(RULE, held, SmallBase({Q: np.ones((2, 4))}))


def test_the_rank_is_held_against_the_configuration() -> None:
    held = checkpoint("HRA", of_module({"hra_u": np.ones((3, 2))}), r=4)
    with pytest.raises(AdapterError, match="has rank 2 in the weights, expected 4 from the config"):
        RULE.describe(held)
