"""LOKR against the Kronecker product, in all the forms that its factors take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.lokr import KRONECKER_ORDER, LokrRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

Array = NDArray[Any]
RULE = LokrRule()
sizes = st.integers(1, 4)
# Three products of at most 16 terms in double precision, against float64 values of order one.
TINY = 256 * 2.0**-53


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def of_form(
    form: str, seed: int, rows: int, columns: int, rank: int, name: str
) -> dict[str, Array]:
    if form == "whole":
        return {name: random(seed, rows, columns)}
    return {f"{name}_a": random(seed, rows, rank), f"{name}_b": random(seed, rank, columns)}


def product(tensors: dict[str, Array], name: str) -> Array:
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]


@given(
    forms=st.tuples(st.sampled_from(["whole", "low"]), st.sampled_from(["whole", "low"])),
    a=sizes,
    b=sizes,
    c=sizes,
    d=sizes,
    rank=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_linear_update_is_the_kronecker_product(
    forms: tuple[str, str], a: int, b: int, c: int, d: int, rank: int, seed: int
) -> None:
    assume(forms[1] == "low" or 2 * rank >= max(b, d))
    tensors = of_form(forms[0], seed, a, c, rank, "lokr_w1")
    tensors |= of_form(forms[1], seed + 1, b, d, rank, "lokr_w2")
    found = lowered(RULE, checkpoint("LOKR", of_module(tensors), r=rank, alpha=3))
    one, two = product(tensors, "lokr_w1"), product(tensors, "lokr_w2")
    expected = 3 / rank * np.kron(one, two)
    ours = update(found).reshape(expected.shape)
    limit = TINY * 3 * np.abs(one).max() * np.abs(two).max() + TINY * rank**2 * 100
    assert np.abs(ours - expected).max() <= limit
    ranks = [min(a, c), min(b, d)]
    ranks = [min(r, rank) if form == "low" else r for r, form in zip(ranks, forms, strict=True)]
    assert found.rank == ranks[0] * ranks[1]


def kron_by_loops(w1: Array, w2: Array) -> Array:
    """`[a, c]`, `[b, d, *kernel]` -> `[a b, c d, *kernel]`."""
    (a, c), (b, d, *kernel) = w1.shape, w2.shape
    result = np.zeros((a * b, c * d, *kernel))
    for i in range(a):
        for j in range(c):
            result[i * b : (i + 1) * b, j * d : (j + 1) * d] = w1[i, j] * w2
    return result


def test_the_kernel_belongs_to_the_second_factor() -> None:
    w1, w2 = random(1, 2, 3), random(2, 4, 2, 3, 5)
    held = checkpoint("LOKR", of_module({"lokr_w1": w1, "lokr_w2": w2}), r=2, alpha=2)
    found = lowered(RULE, held)
    assert found.A.shape == (2 * 4, 6, 3, 5)
    assert np.abs(update(found) - kron_by_loops(w1, w2)).max() <= TINY * 10


def test_a_flattened_second_factor_does_not_tell_the_kernel() -> None:
    w1, left, right = random(1, 2, 3), random(2, 4, 2), random(3, 2, 2 * 15)
    tensors = {"lokr_w1": w1, "lokr_w2_a": left, "lokr_w2_b": right}
    held = checkpoint("LOKR", of_module(tensors), r=2, alpha=2)
    shape = RULE.describe(held).shapes[Q]
    assert (shape.kernel, shape.in_features, shape.rank) == (None, 3 * 2 * 15, 4)
    expected = kron_by_loops(w1, (left @ right).reshape(4, 2, 3, 5))
    ours = update(lowered(RULE, held)).reshape(expected.shape)
    assert np.abs(ours - expected).max() <= TINY * 10


@pytest.mark.parametrize("kernel", [(3, 5), (5, 1), (3,)])
def test_a_core_joins_the_parts_of_the_second_factor(kernel: tuple[int, ...]) -> None:
    w1, t2 = random(1, 2, 3), random(2, 2, 2, *kernel)
    w2_a, w2_b = random(3, 2, 4), random(4, 2, 5)
    tensors = {"lokr_w1": w1, "lokr_t2": t2, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
    held = checkpoint("LOKR", of_module(tensors), r=2, alpha=2)
    w2 = np.zeros((4, 5, *kernel))
    for i in range(2):
        for j in range(2):
            w2 += np.multiply.outer(np.outer(w2_a[i], w2_b[j]), t2[i, j])
    shape = RULE.describe(held).shapes[Q]
    # a core of a convolution over one axis ends in an axis of 1 as well
    assert shape.kernel == (None if kernel[-1] == 1 else kernel)
    expected = kron_by_loops(w1, w2)
    assert np.abs(update(lowered(RULE, held)).reshape(expected.shape) - expected).max() <= TINY * 10


def test_pefts_product_for_one_axis_is_in_the_other_order() -> None:
    """torch.kron gives the factor with fewer axes leading ones; the result is then reshaped."""
    w1, w2 = random(1, 2, 3), random(2, 4, 5, 3)
    tensors = of_module({"lokr_w1": w1, "lokr_w2": w2})
    padded = np.zeros((4, 2 * 5, 3 * 3))
    for b in range(4):
        padded[b] = np.kron(w1, w2[b])
    expected = padded.reshape(2 * 4, 3 * 5, 3)
    found = lowered(RULE, checkpoint("LOKR", tensors, r=3, alpha=3))
    assert found.rank == 2 * 4
    assert np.abs(update(found) - expected).max() <= TINY * 10
    logical = checkpoint("LOKR", tensors, r=1, alpha=1, **{KRONECKER_ORDER: "logical"})
    assert np.abs(update(lowered(RULE, logical)) - kron_by_loops(w1, w2)).max() <= TINY * 10


def test_the_scale_is_of_the_configurations_rank_where_the_tensors_have_none() -> None:
    tensors = {"lokr_w1": random(1, 2, 2), "lokr_w2": random(2, 3, 3)}
    held = checkpoint("LOKR", of_module(tensors), r=16, alpha=4)
    shape = RULE.describe(held).shapes[Q]
    assert (shape.scale, shape.rank) == (0.25, 6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lokr_w2": (2, 2)}, "the module has neither lokr_w1 nor lokr_w1_a, expected lokr_w1 "),
        ({"lokr_w1": (2, 2)}, "the module has neither lokr_w2 nor lokr_w2_a, expected lokr_w2 "),
        (
            {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w2": (2, 2)},
            "the module has lokr_w1 beside lokr_w1_a, expected lokr_w1 alone",
        ),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 4)}, "the module has no lokr_w2_b"),
        (
            {"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (4, 2)},
            r"lokr_w2_a has shape \[2, 3\], expected \[2, 4\] from the module's other tensors",
        ),
        (
            {"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (3, 2)},
            "has rank 3 in the weights, expected 4 from the configuration",
        ),
        (
            {"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 2), "lokr_w2": (2, 2)},
            "has rank 3 in the weights, expected 4 from the configuration",
        ),
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 2, 2, 2, 2)}, "expected 2 to 4 axes"),
        (
            {"lokr_w1": (2, 2), "lokr_w2": (2, 2), "lokr_t2": (4, 4, 3, 3)},
            "the module has lokr_t2 beside a whole lokr_w2",
        ),
        (
            {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (4, 2), "lokr_t2": (4, 4)},
            r"lokr_t2 has shape \[4, 4\], expected 3 or 4 axes",
        ),
        (
            {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (4, 2), "lokr_t2": (4, 3, 3, 3)},
            r"lokr_t2 has shape \[4, 3, 3, 3\], expected \[4, 4, 3, 3\]",
        ),
    ],
)
def test_factors_that_contradict_each_other_are_refused(
    tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    arrays = of_module({name: np.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("LOKR", arrays, r=4))
    assert caught.value.where.module == Q
    assert caught.value.hint


@pytest.mark.parametrize(
    ("one", "two", "fields", "least"),
    [
        ((9, 9), (5, 3), {}, 3),
        ((9, 9), (3, 6), {}, 3),
        ((9, 9), (2, 4, 3, 3), {}, 2),
        ((3, 2), (2, 4, 9), {}, 2),
        ((7, 2), (2, 2), {"decompose_both": True}, 4),
        ((2, 8), (2, 2), {"decompose_both": True}, 4),
    ],
)
def test_a_whole_factor_needs_a_rank_of_half_its_size(
    one: tuple[int, ...], two: tuple[int, ...], fields: dict[str, Any], least: int
) -> None:
    arrays = of_module({"lokr_w1": np.ones(one), "lokr_w2": np.ones(two)})
    message = f"which PEFT trains from rank {least} on, expected lokr_w"
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("LOKR", arrays, r=least - 1, **fields))
    assert caught.value.where.tensor in arrays
    assert RULE.describe(checkpoint("LOKR", arrays, r=least, **fields)).shapes[Q].rank > 0
    other = {**fields, KRONECKER_ORDER: "logical"}
    assert RULE.describe(checkpoint("LOKR", arrays, r=least - 1, **other)).shapes[Q].rank > 0


def test_an_unknown_order_is_refused() -> None:
    held = checkpoint("LOKR", {}, **{KRONECKER_ORDER: "any"})
    with pytest.raises(AdapterError, match="is 'any', expected 'logical'"):
        RULE.describe(held)
