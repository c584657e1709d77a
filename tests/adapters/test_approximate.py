"""Approximations against NumPy's singular value decomposition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import lora_quant.adapters.maths.approximate as subject
from lora_quant.adapters.kinds.c3a import C3aRule
from lora_quant.adapters.kinds.hira import HiraRule
from lora_quant.adapters.lowered import Dense
from lora_quant.adapters.maths.approximate import approximate, rank_for
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, dense, of_module

Matrix = NDArray[np.float64]
sizes = st.integers(1, 8)
seeds = st.integers(0, 2**32 - 1)
# What the module promises: rounding for the direct way, 2e-8 by way of a Gram matrix.
DIRECT, BY_GRAM = 1e-13, 2e-8


@pytest.fixture(params=["direct", "gram"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Both ways of decomposing, and how close each has to come."""
    if request.param == "direct":
        return DIRECT
    monkeypatch.setattr(subject, "_SVD_SIDE", 0)
    return BY_GRAM


def best_error(matrix: Matrix, rank: int) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)
    total = np.sqrt(np.sum(values**2))
    return float(np.sqrt(np.sum(values[rank:] ** 2)) / total) if total else 0.0


def product(dense: Dense, rank: int) -> tuple[Matrix, float]:
    found = approximate(dense, rank)
    A = found.lowered.A.reshape(found.lowered.rank, -1)
    return (found.lowered.B * found.lowered.s) @ A, found.error


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (8, 5), (6, 6), (1, 7), (7, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_no_factors_of_that_rank_are_closer(
    shape: tuple[int, int], seed: int, limit: float
) -> None:
    delta = np.random.default_rng(seed).normal(size=shape)
    for rank in range(1, min(shape) + 1):
        made, error = product(Dense(delta), rank)
        assert abs(error - best_error(delta, rank)) <= limit
        assert abs(error - np.linalg.norm(delta - made) / np.linalg.norm(delta)) <= DIRECT


@given(out=sizes, inputs=sizes, seed=seeds)
def test_the_error_falls_with_the_rank_and_ends_at_zero(out: int, inputs: int, seed: int) -> None:
    delta = Dense(np.random.default_rng(seed).normal(size=(out, inputs)))
    errors = [approximate(delta, rank).error for rank in range(1, min(out, inputs) + 2)]
    assert all(after <= before + DIRECT for before, after in pairwise(errors))
    assert errors[-1] == errors[min(out, inputs) - 1] == 0.0


@given(out=sizes, inputs=sizes, more=st.integers(0, 3), seed=seeds)
def test_full_rank_is_exact_bit_for_bit(out: int, inputs: int, more: int, seed: int) -> None:
    delta = np.random.default_rng(seed).normal(size=(out, inputs))
    found = approximate(Dense(delta), min(out, inputs) + more)
    assert found.lowered.rank == min(out, inputs)
    np.testing.assert_array_equal(found.lowered.B @ found.lowered.A, delta)


def test_a_matrix_of_low_rank_is_found_again(limit: float) -> None:
    rng = np.random.default_rng(2)
    delta = rng.normal(size=(9, 3)) @ rng.normal(size=(3, 7))
    made, error = product(Dense(delta), 3)
    assert error <= limit
    assert np.abs(made - delta).max() <= limit * np.linalg.norm(delta)
    # one rank more than there is has nothing to hold, and no division by it
    assert approximate(Dense(delta), 4).error <= limit


def test_both_factors_have_the_same_range(limit: float) -> None:
    delta = np.random.default_rng(3).normal(size=(6, 9))
    found = approximate(Dense(delta), 4).lowered
    roots = np.sqrt(np.linalg.svd(delta, compute_uv=False)[:4])
    assert np.abs(np.linalg.norm(found.A, axis=1) - roots).max() <= limit * roots[0] * 10
    assert np.abs(np.linalg.norm(found.B, axis=0) - roots).max() <= limit * roots[0] * 10
    np.testing.assert_array_equal(found.s, np.ones(4))


def test_a_convolution_is_flattened_and_keeps_its_kernel_and_bias() -> None:
    rng = np.random.default_rng(4)
    delta, c = rng.normal(size=(5, 3, 2, 2)), rng.normal(size=5)
    found = approximate(Dense(delta, c), 2)
    assert found.lowered.A.shape == (2, 3, 2, 2)
    assert found.lowered.c is c
    assert abs(found.error - best_error(delta.reshape(5, 12), 2)) <= DIRECT


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_nothing_is_approximated_without_an_error(rank: int, limit: float) -> None:
    found = approximate(Dense(np.zeros((4, 3))), rank)
    assert found.error == 0.0
    assert not (found.lowered.B @ found.lowered.A).any()
    assert rank_for(Dense(np.zeros((4, 3))), 0.0) == 1


def test_a_rank_below_one_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        approximate(Dense(np.ones((2, 2))), 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_for_an_error_is_the_smallest_that_reaches_it(seed: int, limit: float) -> None:
    delta = np.random.default_rng(seed).normal(size=(7, 5))
    errors = [best_error(delta, rank) for rank in range(1, 6)]
    for rank, error in enumerate(errors, 1):
        assert rank_for(Dense(delta), error + limit) == rank
    assert rank_for(Dense(delta), 0.0) == 5
    assert rank_for(Dense(delta), 1.0) == 1


def test_an_integer_or_16_bit_delta_is_taken_in_double_precision() -> None:
    delta = np.ones((2, 3), np.float16)
    found = approximate(Dense(delta), 1)
    assert found.lowered.A.dtype == np.float64
    assert found.error <= DIRECT


@pytest.mark.parametrize(
    ("rank", "of_c3a", "of_hira"), [(8, 0.94, 0.92), (16, 0.89, 0.85), (32, 0.79, 0.73)]
)
def test_what_is_left_of_dense_kinds_is_as_much_as_was_measured_with_peft(
    rank: int, of_c3a: float, of_hira: float
) -> None:
    rng = np.random.default_rng(6)
    kernel = of_module({"c3a_kernel": rng.normal(size=(8, 8, 32))})
    held = checkpoint("C3A", kernel, block_size=32)
    c3a = dense(C3aRule(), held, SmallBase({}))
    A, B = rng.normal(size=(8, 256)), rng.normal(size=(256, 8))
    weight = SmallBase({Q: rng.normal(size=(256, 256))})
    hira = dense(HiraRule(), checkpoint("HIRA", of_module({"hira_A": A, "hira_B": B}), r=8), weight)
    # random matrices of this size differ by about a hundredth, and the figures have two digits
    assert abs(approximate(c3a, rank).error - of_c3a) <= 0.02
    assert abs(approximate(hira, rank).error - of_hira) <= 0.02
