"""ADALORA: the factor of each rank, the divisor of the scale, and ranks that were taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.adalora import AdaloraRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

Array = NDArray[Any]
RULE = AdaloraRule()


def tensors(rank: int, inputs: int = 5, out: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(rank)
    A, B = rng.normal(size=(rank, inputs)), rng.normal(size=(out, rank))
    return of_module({"lora_A": A, "lora_B": B, "lora_E": rng.normal(size=(rank, 1))})


@given(rank=st.integers(1, 6), alpha=st.integers(-1, 32))
def test_each_rank_has_its_factor_over_the_rank_at_the_start(rank: int, alpha: int) -> None:
    made = tensors(rank)
    found = lowered(RULE, checkpoint("ADALORA", made, init_r=rank, lora_alpha=alpha))
    A, B, E = (made[f"{Q}.lora_{name}"] for name in "ABE")
    # PEFT adds 1e-5 to a float32 and divides by that sum
    divisor = float(np.float32(rank + 1e-5))
    expected = (B * E[:, 0]) @ A * (alpha if alpha > 0 else rank) / divisor
    # the sum in float32 is the float64 sum rounded once; the rest are a few roundings of float64
    assert np.abs(update(found) - expected).max() <= (2.0**-24 + 2.0**-49) * np.abs(expected).max()
    np.testing.assert_array_equal(found.A, A)
    np.testing.assert_array_equal(found.B, B)


def test_the_scale_does_not_follow_the_ranks_that_are_left() -> None:
    pattern = {f"{Q}.lora_E": [True, False, True, False]}
    held = checkpoint("ADALORA", tensors(2), init_r=4, lora_alpha=8, rank_pattern=pattern)
    shape = RULE.describe(held).shapes[Q]
    assert shape.rank == 2
    assert shape.scale == 8 / float(np.float32(4) + np.float32(1e-5))


def test_a_module_of_which_nothing_is_left_does_nothing() -> None:
    pattern = {f"{Q}.lora_E": [False] * 4}
    held = checkpoint("ADALORA", tensors(0), init_r=4, rank_pattern=pattern)
    found = lowered(RULE, held)
    assert found.A.shape == (0, 5)
    assert found.B.shape == (4, 0)


@pytest.mark.parametrize(
    ("rank", "pattern", "message"),
    [
        (3, None, "has rank 3 in the weights, expected 4 from init_r"),
        (3, {f"{Q}.lora_E": [True, True, False, False]}, "expected 2 from rank_pattern"),
        (3, {"layers.1.q_proj.lora_E": [True] * 4}, "expected 4 from rank_pattern"),
        (3, {f"{Q}.lora_E": 3}, r"rank_pattern\['.*'\] is 3, expected a list of true and false"),
        (3, [1], r"rank_pattern is \[1\], expected a list of true and false"),
    ],
)
def test_a_rank_that_the_configuration_does_not_tell_is_refused(
    rank: int, pattern: Any, message: str
) -> None:
    held = checkpoint("ADALORA", tensors(rank), init_r=4, rank_pattern=pattern)
    with pytest.raises(AdapterError, match=message):
        RULE.describe(held)


def test_tensors_of_different_ranks_are_refused() -> None:
    made = tensors(4) | {f"{Q}.lora_E": np.ones((3, 1))}
    with pytest.raises(AdapterError, match=r"lora_E \[3, 1\], expected \[r, in\], \[out, r\]"):
        RULE.describe(checkpoint("ADALORA", made, init_r=4))


def test_alpha_0_is_refused_where_pefts_reload_scales_otherwise_than_its_training() -> None:
    pattern = {f"{Q}.lora_E": [True, False]}
    held = checkpoint("ADALORA", tensors(1), init_r=2, lora_alpha=0, rank_pattern=pattern)
    with pytest.raises(UnsupportedAdapterError, match="lora_alpha is 0 beside a rank_pattern"):
        RULE.describe(held)


def test_an_old_counter_is_held_against_the_rank_at_the_start() -> None:
    good = tensors(4) | {f"{Q}.ranknum": np.array([4.0])}
    assert lowered(RULE, checkpoint("ADALORA", good, init_r=4)).rank == 4
    bad = tensors(4) | {f"{Q}.ranknum": np.array([12.0])}
    with pytest.raises(AdapterError, match=r"ranknum is \[12.0\], expected \[4\] as init_r"):
        lowered(RULE, checkpoint("ADALORA", bad, init_r=4))


@pytest.mark.parametrize("field", sorted(AdaloraRule.refused))
def test_what_belongs_to_lora_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"{field} is set: ") as caught:
        RULE.describe(checkpoint("ADALORA", tensors(4), init_r=4, **{field: [1]}))
    assert caught.value.where.field == field
    assert caught.value.hint
