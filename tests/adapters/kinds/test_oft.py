"""OFT against block diagonal matrices written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.kinds.oft import OftRule, block_size, cayley, neumann_series
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, dense, of_module

RULE = OftRule()
NOW = {"peft_version": "0.21.2"}
# Sums of at most 12 products of three in double precision; values stay below 8. The series of a
# skew matrix of norm up to 16 grows with its fourth power.
TINY = 12 * 3 * 2.0**-53 * 8**3


def skew(values: Array, size: int) -> Array:
    Q_block = np.zeros((size, size))
    place = iter(values)
    for i in range(size):
        for j in range(i + 1, size):
            Q_block[i, j] = next(place)
            Q_block[j, i] = -Q_block[i, j]
    return Q_block


def exact(Q_block: Array) -> Array:
    one = np.eye(len(Q_block))
    result: Array = (one - Q_block) @ np.linalg.inv(one + Q_block)
    return result


def block_diagonal(blocks: list[Array]) -> Array:
    size = len(blocks[0])
    full = np.zeros((size * len(blocks),) * 2)
    for n, block in enumerate(blocks):
        full[n * size : (n + 1) * size, n * size : (n + 1) * size] = block
    return full


@given(
    blocks=st.integers(1, 3),
    size=st.integers(2, 4),
    out=st.integers(1, 5),
    share=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_inputs_are_rotated_in_blocks(
    blocks: int, size: int, out: int, share: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(1 if share else blocks, size * (size - 1) // 2))
    weight = rng.normal(size=(out, blocks * size))
    fields = {"use_cayley_neumann": False, "block_share": share, "oft_block_size": size}
    held = checkpoint("OFT", of_module({"oft_R.weight": values}), **fields, **NOW)
    found = dense(RULE, held, SmallBase({Q: weight}))
    R = block_diagonal([exact(skew(v, size)) for v in values] * (blocks if share else 1))
    assert np.abs(weight + found.delta - weight @ R.T).max() <= 10 * TINY
    assert found.c is None


@given(size=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_the_cayley_transform_is_a_rotation(size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size * (size - 1) // 2)
    R = cayley(skew(values, size)[None])[0]
    assert np.abs(R @ R.T - np.eye(size)).max() <= 10 * TINY
    assert np.abs(R - exact(skew(values, size))).max() <= 10 * TINY


@pytest.mark.parametrize(
    ("terms", "factors"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 2, 1)),
        (4, (1, 2, 2, 1)),
        (5, (1, 2, 2, 2, 1)),
        (7, (1, 2, 2, 2, 2, 2, 1)),
    ],
)
def test_the_series_is_cut_off_as_peft_cuts_it(terms: int, factors: tuple[int, ...]) -> None:
    Q_block = skew(np.array([0.1, -0.3, 0.2]), 3)
    expected = sum(f * np.linalg.matrix_power(Q_block, k) for k, f in enumerate(factors))
    assert np.abs(neumann_series(Q_block[None], terms)[0] - expected).max() <= TINY


@pytest.mark.parametrize("terms", [0, 101])
def test_a_series_without_an_end_is_refused(terms: int) -> None:
    held = checkpoint("OFT", {}, num_cayley_neumann_terms=terms, **NOW)
    with pytest.raises(AdapterError, match=f"terms is {terms}, expected 1 to 100"):
        RULE.describe(held)


@pytest.mark.parametrize("eps", [0.5, 0.0])
@pytest.mark.parametrize("blocks", [1, 4])
def test_coft_shortens_what_is_beyond_its_limit(blocks: int, eps: float) -> None:
    values = np.array([[0.001, 0, 0], [3, 0, 4], [0, 1, 0], [0, 0, 0]], np.float64)[:blocks]
    weight = np.eye(3 * blocks)
    fields = {"use_cayley_neumann": False, "coft": True, "eps": eps}
    held = checkpoint("OFT", of_module({"oft_R.weight": values}), **fields, **NOW)
    limit = eps / math.sqrt(blocks)
    short = []
    for v in values:
        norm = math.sqrt(2 * float(v @ v))
        short.append(exact(skew(v if norm <= limit else v * limit / norm, 3)))
    found = dense(RULE, held, SmallBase({Q: weight}))
    assert np.abs(weight + found.delta - block_diagonal(short).T).max() <= TINY


def test_an_embedding_is_rotated_along_its_dim() -> None:
    class Table(SmallBase):
        def sizes(self, module: str) -> BaseSizes:
            return BaseSizes(7, 4, is_embedding=True)

    rng = np.random.default_rng(5)
    values, weight = rng.normal(size=(2, 1)), rng.normal(size=(4, 7))
    fields = {"use_cayley_neumann": False}
    held = checkpoint("OFT", of_module({"oft_embedding_R.weight": values}), **fields, **NOW)
    shape = RULE.describe(held).shapes[Q]
    assert (shape.is_embedding, shape.in_features, shape.out_features) == (True, None, 4)
    table = weight.T @ block_diagonal([exact(skew(v, 2)) for v in values])
    found = dense(RULE, held, Table({Q: weight}))
    assert np.abs(weight + found.delta - table.T).max() <= TINY


@given(size=st.integers(2, 10_000))
def test_a_block_size_is_found_from_its_triangle(size: int) -> None:
    elements = size * (size - 1) // 2
    assert block_size(elements) == size
    assert block_size(elements + 1) is None


@pytest.mark.parametrize("name", ["oft_r", "oft_s", "oft_r.default"])
def test_files_of_old_releases_are_refused(name: str) -> None:
    held = checkpoint("OFT", of_module({name: np.ones((2, 3, 3))}), r=2)
    with pytest.raises(
        UnsupportedAdapterError, match=r"of an OFT from before PEFT 0\.16"
    ) as caught:
        RULE.describe(held)
    assert caught.value.where.module == Q
    assert caught.value.hint == "merge it into the base with PEFT 0.15, or train it again"


@pytest.mark.parametrize("version", [None, "0.17.1", "0.9", "unknown"])
def test_a_series_of_an_old_release_is_refused(version: str | None) -> None:
    tensors = of_module({"oft_R.weight": np.ones((2, 3))})
    fields: dict[str, Any] = {"peft_version": version}
    with pytest.raises(UnsupportedAdapterError, match=r"before 0.18, PEFT cut the .* series off"):
        RULE.describe(checkpoint("OFT", tensors, **fields))
    RULE.describe(checkpoint("OFT", tensors, use_cayley_neumann=False, **fields))
    RULE.describe(checkpoint("OFT", tensors, peft_version="0.18.0.dev0@1a2b"))


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((2, 4), {}, r"has 4 values a block, expected b \(b - 1\) / 2"),
        ((2, 3), {"block_share": True}, "has 2 blocks, expected 1 with block_share"),
    ],
)
def test_tensors_that_make_no_blocks_are_refused(
    shape: tuple[int, int], fields: dict[str, Any], message: str
) -> None:
    tensors = of_module({"oft_R.weight": np.ones(shape)})
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("OFT", tensors, **fields, **NOW))
    assert caught.value.where.module == Q


def test_a_base_that_does_not_fit_the_blocks_is_refused() -> None:
    tensors = of_module({"oft_R.weight": np.ones((2, 3))})
    with pytest.raises(AdapterError, match="the base's weight has 5 columns, expected 6"):
        dense(RULE, checkpoint("OFT", tensors, **NOW), SmallBase({Q: np.ones((2, 5))}))
    tensors = of_module({"oft_R.weight": np.ones((1, 3))})
    held = checkpoint("OFT", tensors, block_share=True, **NOW)
    with pytest.raises(AdapterError, match=r"5 inputs .* are rotated in blocks of 3"):
        dense(RULE, held, SmallBase({Q: np.ones((2, 5))}))


def test_kernels_of_one_point_are_rotated_and_larger_ones_refused() -> None:
    held = checkpoint("OFT", of_module({"oft_R.weight": np.ones((2, 1))}), **NOW)
    found = dense(RULE, held, SmallBase({Q: np.ones((3, 4, 1, 1))}))
    assert found.delta.shape == (3, 4, 1, 1)
    held = checkpoint("OFT", of_module({"oft_R.weight": np.ones((18, 1))}), **NOW)
    with pytest.raises(UnsupportedAdapterError, match=r"kernel of \[3, 3\]: there PEFT adds up"):
        dense(RULE, held, SmallBase({Q: np.ones((2, 4, 3, 3))}))
