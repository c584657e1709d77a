"""HIRA against entry by entry products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.kinds.hira import HiraRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, dense, of_module

RULE = HiraRule()
sizes = st.integers(1, 6)
# Sums of at most 6 products of three in double precision; normal values stay below 8.
TINY = 6 * 3 * 2.0**-53 * 8**3


@given(
    out=sizes,
    inputs=sizes,
    rank=sizes,
    kernel=st.sampled_from([(), (3,), (2, 3), (2, 1, 2)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_entry_is_multiplied(
    out: int, inputs: int, rank: int, kernel: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(rank, inputs, *kernel))
    B = rng.normal(size=(out, rank, *(1 for _ in kernel)))
    weight = rng.normal(size=(out, inputs, *kernel))
    held = checkpoint("HIRA", of_module({"hira_A": A, "hira_B": B}), r=rank)
    assert RULE.describe(held).shapes[Q].kernel == kernel
    found = dense(RULE, held, SmallBase({Q: weight}))
    expected = np.zeros(weight.shape)
    for o in range(out):
        for i in range(inputs):
            for k in range(rank):
                expected[o, i] += weight[o, i] * B[o, k].item() * A[k, i]
    assert np.abs(found.delta - expected).max() <= TINY


def test_the_table_of_an_embedding_is_multiplied() -> None:
    class Table(SmallBase):
        def sizes(self, module: str) -> BaseSizes:
            return BaseSizes(5, 2, is_embedding=True)

    rng = np.random.default_rng(1)
    A, B, weight = rng.normal(size=(3, 5)), rng.normal(size=(2, 3)), rng.normal(size=(2, 5))
    tensors = of_module({"hira_embedding_A": A, "hira_embedding_B": B})
    held = checkpoint("HIRA", tensors, r=3)
    shape = RULE.describe(held).shapes[Q]
    assert (shape.is_embedding, shape.in_features, shape.out_features) == (True, 5, 2)
    found = dense(RULE, held, Table({Q: weight}))
    assert np.abs(found.delta - weight * (B @ A)).max() <= TINY


@pytest.mark.parametrize("rank", [2, 3])
def test_a_rank_may_be_the_general_one_or_that_of_its_pattern(rank: int) -> None:
    tensors = of_module({"hira_A": np.ones((rank, 4)), "hira_B": np.ones((5, rank))})
    RULE.describe(checkpoint("HIRA", tensors, r=3, rank_pattern={"q_proj": 2}))


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        ((4, 4), (5, 4), "has rank 4 in the weights, expected 2"),
        ((3, 4), (5, 2), r"hira_B has shape \[5, 2\], expected \[5, 3\]"),
        ((3, 4, 2), (5, 3), r"hira_B has shape \[5, 3\], expected \[5, 3, 1\]"),
        ((3,), (5, 3), r"hira_A has shape \[3\], expected \[rank, in, kernel...\]"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    A: tuple[int, ...], B: tuple[int, ...], message: str
) -> None:
    tensors = of_module({"hira_A": np.ones(A), "hira_B": np.ones(B)})
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("HIRA", tensors, r=3, rank_pattern={"q_proj": 2}))
    assert caught.value.where.module == Q


def test_a_base_of_another_shape_is_refused() -> None:
    tensors = of_module({"hira_A": np.ones((3, 4)), "hira_B": np.ones((5, 3))})
    message = r"the base's weight is \[5, 6\], expected \[5, 4\] from the adapter's tensors"
    with pytest.raises(AdapterError, match=message):
        dense(RULE, checkpoint("HIRA", tensors, r=3), SmallBase({Q: np.ones((5, 6))}))
