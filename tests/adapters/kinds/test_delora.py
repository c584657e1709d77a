"""DELORA: directions, one strength, and the norms of the base's columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.delora import DeloraRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

RULE = DeloraRule()


@given(rank=st.integers(1, 4), small=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_rows_and_columns_count_by_their_direction(rank: int, small: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(rank, 5)), rng.normal(size=(4, rank))
    if small:
        A[0] = B[:, 0] = 0
    norms = rng.uniform(0.5, 2, size=5)
    made = {"delora_A": A, "delora_B": B, "delora_lambda": np.array([7.0]), "delora_w_norm": norms}
    found = lowered(RULE, checkpoint("DELORA", of_module(made), r=rank))
    expected = np.zeros((4, 5))
    for i in range(rank):
        length = max(float(np.sqrt((A[i] ** 2).sum())), 1e-4)
        length *= max(float(np.sqrt((B[:, i] ** 2).sum())), 1e-4)
        expected += 7 / rank / length * np.outer(B[:, i], A[i] * norms)
    # each of at most 4 terms is at most 7 * 2; a dozen roundings of float64 each
    assert np.abs(update(found) - expected).max() <= 4 * 14 * 12 * 2.0**-53


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("delora_B", (4, 3), r"delora_B has shape \[4, 3\], expected \[4, 2\]"),
        ("delora_lambda", (2,), r"delora_lambda has shape \[2\], expected \[1\]"),
        ("delora_w_norm", (4,), r"delora_w_norm has shape \[4\], expected \[5\]"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"delora_A": (2, 5), "delora_B": (4, 2)}
    shapes |= {"delora_lambda": (1,), "delora_w_norm": (5,)} | {name: shape}
    arrays = of_module({key: np.ones(value) for key, value in shapes.items()})
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("DELORA", arrays, r=2))


def test_the_rank_is_in_the_strength_and_must_agree() -> None:
    shapes = {"delora_A": (2, 5), "delora_B": (4, 2), "delora_lambda": (1,), "delora_w_norm": (5,)}
    arrays = of_module({key: np.ones(value) for key, value in shapes.items()})
    pattern = {"q_proj": 2}
    shape = RULE.describe(checkpoint("DELORA", arrays, r=8, rank_pattern=pattern)).shapes[Q]
    assert (shape.rank, shape.scale) == (2, 1.0)
    with pytest.raises(AdapterError, match="has rank 2 in the weights, expected 8"):
        RULE.describe(checkpoint("DELORA", arrays, r=8))
