"""VBLORA against a loop over sub-vectors, in both ways of saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.vblora import VbloraRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, checkpoint, lowered, of_module, update
from tests.adapters.kinds.saved import saved

RULE = VbloraRule()
sizes = st.integers(1, 3)
# Two factors of at most 4 softmax weights (each a few roundings of exp and a quotient) times
# normal values below 8, and 3 ranks.
TINY = 3 * 64 * 2.0**-53 * 8**2


def sub_vector(logits: Array, bank: Array, topk: int) -> Array:
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[:topk]
    weights = [np.exp(logits[i] - logits[best[0]]) for i in best]
    parts = [w / np.sum(weights) * bank[i] for w, i in zip(weights, best, strict=True)]
    return np.asarray(np.sum(parts, axis=0))


@given(
    rank=sizes,
    tiles=st.tuples(sizes, sizes),
    length=sizes,
    topk=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_factors_are_put_together_from_sub_vectors(
    rank: int, tiles: tuple[int, int], length: int, topk: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank = rng.normal(size=(5, length))
    logits_A = rng.normal(size=(rank, tiles[0], 5))
    logits_B = rng.normal(size=(tiles[1], rank, 5))
    tensors = {"base_model.vblora_vector_bank": bank}
    tensors |= of_module({"vblora_logits_A": logits_A, "vblora_logits_B": logits_B})
    found = lowered(RULE, checkpoint("VBLORA", tensors, r=rank, topk=topk))
    A = [np.concatenate([sub_vector(row, bank, topk) for row in rows]) for rows in logits_A]
    B = np.zeros((tiles[1] * length, rank))
    for tile, rows in enumerate(logits_B):
        for k, row in enumerate(rows):
            B[tile * length : (tile + 1) * length, k] = sub_vector(row, bank, topk)
    assert np.abs(update(found) - B @ np.array(A)).max() <= TINY


def test_the_last_weight_of_each_sub_vector_is_what_is_missing_to_one(tmp_path: Path) -> None:
    bank = np.arange(6.0).reshape(3, 2)
    tensors = {
        "base_model.vblora_vector_bank": bank,
        **of_module(
            {
                "vblora_logits_A_topk_indices": np.array([[[2, 0]]], np.uint8),
                "vblora_logits_A_topk_weights": np.array([[[0.75]]]),
                "vblora_logits_B_topk_indices": np.array([[[1, 2]]], np.uint8),
                "vblora_logits_B_topk_weights": np.array([[[0.5]]]),
            }
        ),
    }
    found = lowered(RULE, saved(tmp_path, "VBLORA", tensors, r=1, topk=2))
    np.testing.assert_array_equal(found.A, [0.75 * bank[2] + 0.25 * bank[0]])
    np.testing.assert_array_equal(found.B[:, 0], 0.5 * bank[1] + 0.5 * bank[2])


def test_one_vector_each_needs_no_weights(tmp_path: Path) -> None:
    bank = np.arange(6.0).reshape(3, 2)
    indices = np.array([[[2]]], np.uint8)
    parts = {f"vblora_logits_{side}_topk_indices": indices for side in "AB"}
    tensors = {"base_model.vblora_vector_bank": bank, **of_module(parts)}
    found = lowered(RULE, saved(tmp_path, "VBLORA", tensors, r=1, topk=1))
    np.testing.assert_array_equal(found.A, bank[2:])


@pytest.mark.parametrize(
    ("logits", "count", "is_clear"),
    [
        ([3.0, 1.0, 1.0], 2, False),
        ([1.0, 3.0, 1.0], 2, False),
        ([2.0, 2.0, 1.0], 1, False),
        ([2.0, 2.0, 1.0], 2, True),
        ([3.0, 1.0, 1.0], 1, True),
        ([3.0, 1.0, 1.0], 3, True),
    ],
)
def test_equal_logits_at_the_cut_are_refused(
    logits: list[float], count: int, is_clear: bool
) -> None:
    parts = {"vblora_logits_A": np.array([[[3.0, 2.0, 1.0], logits]])}
    parts["vblora_logits_B"] = np.array([[[1.0, 2.0, 3.0]]])
    tensors = {"base_model.vblora_vector_bank": np.ones((3, 2)), **of_module(parts)}
    held = checkpoint("VBLORA", tensors, r=1, topk=count)
    if is_clear:
        assert lowered(RULE, held).rank == 1
        return
    message = f"1 sub-vectors of vblora_logits_A have equal logits at the end of their top {count}"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        lowered(RULE, held)
    assert caught.value.where.module == Q
    assert caught.value.hint
    assert "save_only_topk_weights" in caught.value.hint


def topk(folder: Path, index: int, weight: float) -> None:
    parts: dict[str, Array] = {}
    for side in "AB":
        parts[f"vblora_logits_{side}_topk_indices"] = np.array([[[index, 0]]], np.uint8)
        parts[f"vblora_logits_{side}_topk_weights"] = np.array([[[weight]]])
    tensors = {"base_model.vblora_vector_bank": np.ones((3, 2)), **of_module(parts)}
    lowered(RULE, saved(folder, "VBLORA", tensors, r=1, topk=2))


def test_an_index_beyond_the_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="1 of 2 indices are out of range, the first is 3"):
        topk(tmp_path, 3, 0.5)


def test_weights_that_are_no_softmax_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="whose sum is more than 1, or negative ones"):
        topk(tmp_path, 1, 1.5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 5), (3, 1, 5), (5, 2)), "A has rank 2 and B 1, expected the same"),
        (((2, 3, 4), (3, 2, 5), (5, 2)), "vblora_logits_A has 4 entries each, expected 5"),
        (((2, 3, 1), (3, 2, 1), (1, 2)), "topk is 2, expected at most the 1 vectors"),
        (((3, 3, 5), (3, 3, 5), (5, 2)), "has rank 3 in the weights, expected 2"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    of = {"vblora_logits_A": np.ones(shapes[0]), "vblora_logits_B": np.ones(shapes[1])}
    tensors = {"base_model.vblora_vector_bank": np.ones(shapes[2]), **of_module(of)}
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("VBLORA", tensors, r=2, topk=2))
    assert caught.value.where.module == Q


def test_a_file_without_the_bank_is_refused() -> None:
    tensors = of_module({"vblora_logits_A": np.ones((2, 3, 5))})
    with pytest.raises(AdapterError, match="the file has no vblora_vector_bank"):
        RULE.describe(checkpoint("VBLORA", tensors, r=2))
