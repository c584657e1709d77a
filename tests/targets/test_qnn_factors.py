"""Normalised factors compute what the factors do, whatever their magnitudes are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.graph.records import AttachPoint, Branch, Form, LinearNode, ModulePart, TensorRecord
from lora_quant.passes.slots import Slot
from lora_quant.targets.qnn.factors import (
    magnitudes,
    normalised_a,
    normalised_b,
    spare_range,
)

IN, OUT, RANKS = 5, 6, 7


def branch(form: Form) -> Branch:
    linear = LinearNode(
        "n", "MatMul", form, "x", "w", "y", IN, OUT, "float32", weight_is_in_out=True
    )
    point = AttachPoint("m", linear, "y", None, (ModulePart("m", 0, OUT),))
    is_conv = form is Form.CONV
    shapes = ((RANKS, IN, 1, 1), (OUT, RANKS, 1, 1)) if is_conv else ((IN, RANKS), (RANKS, OUT))
    a, b = (TensorRecord(name, shape, "float32") for name, shape in zip("AB", shapes, strict=True))
    return Branch(point, a, b, "x", "h", "a", "m", "l", "y")


@pytest.mark.parametrize("form", [Form.MATMUL, Form.CONV])
@given(
    seed=st.integers(0, 2**31),
    powers=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    scales=st.tuples(st.floats(0.01, 100), st.floats(-100, -0.01)),
    floor=st.sampled_from([1.0, 1 / 64]),
    lift=st.floats(1.0, 3.0),
)
def test_the_product_is_the_same_and_both_factors_are_within_one(
    form: Form,
    seed: int,
    powers: tuple[int, int],
    scales: tuple[float, float],
    floor: float,
    lift: float,
) -> None:
    """Two products of float64 values: errors of a few 2**-53, taken relative to the largest."""
    rng = np.random.default_rng(seed)
    one = branch(form)
    slots = (Slot(0, "p", 0, 3, 1.0, scales[0]), Slot(1, "q", 3, 2, 0.5, scales[1]))
    size = 2.0 ** np.array([powers[0]] * 3 + [powers[1]] * 2 + [0.0] * 2)
    used = np.array([1.0] * 5 + [0.0] * 2)
    A = rng.standard_normal((IN, RANKS)) * size * used
    B = rng.standard_normal((RANKS, OUT)) * used[:, None]
    scale = np.array([scales[0]] * 3 + [scales[1]] * 2 + [0.0] * 2)
    values = {"A": A, "B": B}
    if form is Form.CONV:
        values = {"A": A.T[..., None, None], "B": B.T[..., None, None]}
    found = magnitudes(one, values, slots, floor=floor, with_scale=True)
    ratio = found.ratio * lift
    normal_a = normalised_a(one, values["A"], found).reshape(values["A"].shape)
    normal_b = normalised_b(one, values["B"], found, ratio)
    assert np.abs(normal_a).max() <= 1 + 2**-50
    assert np.abs(normal_b).max() <= 1 + 2**-50
    if form is Form.CONV:
        normal_a, normal_b = normal_a[..., 0, 0].T, normal_b[..., 0, 0].T
    expected = (A * scale) @ B
    computed = (normal_a * ratio) @ normal_b
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_rank_fills_the_grid_of_a_unless_it_is_far_weaker_than_the_strongest() -> None:
    one = branch(Form.MATMUL)
    A = np.ones((IN, RANKS)) * np.array([1, 1 / 64, 1 / 1024, 0, 0, 0, 0])
    B = np.ones((RANKS, OUT))
    slots = (Slot(0, "p", 0, RANKS, 1.0, 1.0),)
    found = magnitudes(one, {"A": A, "B": B}, slots, floor=1 / 64, with_scale=True)
    normal = normalised_a(one, A, found)
    assert normal[0].tolist() == [1, 1, 64 / 1024, 0, 0, 0, 0]
    assert found.ratio.tolist() == [1, 1 / 64, 1 / 64, 0, 0, 0, 0]


def test_scale_is_left_to_an_alpha_that_has_a_value_per_rank() -> None:
    one = branch(Form.MATMUL)
    values = {"A": np.ones((IN, RANKS)), "B": np.ones((RANKS, OUT))}
    slots = (Slot(0, "p", 0, RANKS, 1.0, 8.0),)
    with_scale = magnitudes(one, values, slots, floor=1.0, with_scale=True)
    without = magnitudes(one, values, slots, floor=1.0, with_scale=False)
    assert with_scale.ratio.tolist() == [8.0] * RANKS
    assert without.ratio.tolist() == [1.0] * RANKS


@pytest.mark.parametrize(
    ("activations", "weights", "expected"), [(16, 8, 1 / 64), (16, 16, 1.0), (8, 8, 1.0)]
)
def test_only_activations_with_bits_to_spare_let_weak_ranks_fill_the_grid(
    activations: int, weights: int, expected: float
) -> None:
    assert spare_range(activations, weights) == expected
