"""BD-LoRA and QA-LoRA against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.lora_blocks import block_diagonal, unpooled
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, load, low_rank, pair

A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
SMALL = st.integers(1, 4)


def blocks(**fields: Any) -> dict[str, Any]:
    return {"use_bdlora": {"nblocks": 2, "match_strict": True, **fields}}


@given(blocks=SMALL, height=SMALL, width=SMALL, seed=st.integers(0, 99))
def test_a_block_diagonal_matrix_acts_on_each_part_of_its_input_alone(
    blocks: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(-9, 9, (blocks * height, width)).astype(np.float32)
    x = rng.integers(-9, 9, blocks * width).astype(np.float32)
    parts = [
        packed[b * height : (b + 1) * height] @ x[b * width : (b + 1) * width]
        for b in range(blocks)
    ]
    whole = block_diagonal(packed, blocks)
    assert whole.dtype == np.float32
    # whole numbers below 2**24 add up exactly
    np.testing.assert_array_equal(whole @ x, np.concatenate(parts))


@given(size=SMALL, groups=SMALL, rank=SMALL, seed=st.integers(0, 99))
def test_a_repeated_column_is_a_sum_over_its_group(
    size: int, groups: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    A = rng.integers(-9, 9, (rank, groups)).astype(np.float64)
    x = rng.integers(-9, 9, size * groups).astype(np.float64)
    sums = x.reshape(groups, size).sum(axis=1)
    np.testing.assert_array_equal(unpooled(A, size) @ x, A @ sums)


def test_the_side_that_is_packed_is_the_one_that_the_configuration_names(tmp_path: Path) -> None:
    plain = pair(Q0, features=(6, 8))
    in_a = plain | {A0: plain[A0][:, :3].copy()}
    adapter = load(tmp_path / "a", in_a, **blocks(target_modules_bd_a=["q_pr"]))
    shape = adapter.shapes[Q0]
    assert (shape.rank, shape.in_features, shape.out_features) == (4, 6, 8)
    assert low_rank(adapter, Q0).A.shape == (4, 6)
    in_b = plain | {B0: plain[B0][:, :2].copy()}
    adapter = load(tmp_path / "b", in_b, **blocks(target_modules_bd_b=["attn"]))
    assert (adapter.shapes[Q0].rank, adapter.shapes[Q0].in_features) == (4, 6)
    assert low_rank(adapter, Q0).B.shape == (8, 4)


def test_without_match_strict_other_modules_are_plain(tmp_path: Path) -> None:
    loose = blocks(target_modules_bd_a=["k_proj"], match_strict=False)
    assert load(tmp_path, pair(Q0), **loose).shapes[Q0].in_features == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, f"use_bdlora names module '{Q0}' neither for A nor for B"),
        (
            {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["attn"]},
            f"use_bdlora names module '{Q0}' for A and for B, expected one",
        ),
        ({"nblocks": 0}, "nblocks of use_bdlora is 0, expected 1 or more"),
        ({"target_modules_bd_a": "q_proj"}, "is 'q_proj', expected a list of texts"),
        (
            {"target_modules_bd_a": ["q_proj"], "nblocks": 3},
            "A has 4 rows, expected a multiple of the 3 blocks of use_bdlora",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_errors(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), **blocks(**fields))
    assert caught.value.hint


def test_outputs_that_do_not_split_into_blocks_are_an_error(tmp_path: Path) -> None:
    tensors = pair(Q0)
    tensors[B0] = tensors[B0][:, :2].copy()
    with pytest.raises(AdapterError, match="B has 5 rows, expected a multiple of the 2 blocks"):
        load(tmp_path, tensors, **blocks(target_modules_bd_b=["q_proj"]))


@pytest.mark.parametrize("fields", [{"use_qalora": True}, blocks(target_modules_bd_a=["q_proj"])])
def test_packed_convolutions_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    message = r"a convolution or an embedding, and use_\w+ packs linear modules only"
    with pytest.raises(UnsupportedAdapterError, match=message):
        load(tmp_path, pair(Q0, kernel=(3, 3)), **fields)


def test_pooling_is_in_the_scale_and_not_in_a(tmp_path: Path) -> None:
    tensors = pair(Q0, features=(3, 5))
    adapter = load(tmp_path, tensors, use_qalora=True, qalora_group_size=4)
    shape = adapter.shapes[Q0]
    # lora_alpha / r = 2; the mean of 4 inputs, times 3 groups
    assert (shape.in_features, shape.scale) == (12, 2 * 3 / 4)
    lowered = low_rank(adapter, Q0)
    x = np.arange(12.0)
    ours = lowered.B @ (lowered.s * (lowered.A @ x))
    means = x.reshape(3, 4).mean(axis=1) * 3
    theirs = tensors[B0] @ (2.0 * (tensors[A0] @ means))
    # 12 + 4 products in float64 on either side
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=64 * 2.0**-53 * np.abs(theirs).sum() * 9)
