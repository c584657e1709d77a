"""LILY: experts as ranks, with a router that reads those of the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.lily import LilyRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module

Array = NDArray[Any]
RULE = LilyRule()


def softmax(values: Array) -> Array:
    powers: Array = np.exp(values - values.max())
    shares: Array = powers / powers.sum()
    return shares


@given(rank=st.integers(1, 3), experts=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_the_experts_are_weighed_by_what_the_router_makes_of_all_tokens(
    rank: int, experts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(rank, 5)), rng.normal(size=(experts * rank, 4))
    router, tokens = rng.normal(size=(experts, rank)), rng.normal(size=(3, 5))
    made = {"lily_A.weight": A, "lily_B.weight": B, "lily_router.weight": router}
    found = lowered(RULE, checkpoint("LILY", of_module(made), r=rank, num_B=experts, scaling=1.5))
    mean = np.mean([softmax(router @ (A @ token)) for token in tokens], axis=0)
    assert found.router is not None
    assert found.router.shape == (experts, experts * rank)
    ours = np.mean([softmax(found.router @ (found.A @ token)) for token in tokens], axis=0)
    # the copies of A add zeros to the logits: the same sums
    assert np.abs(ours - mean).max() <= 16 * 2.0**-53
    for token in tokens:
        expected = sum(
            1.5 * mean[e] * (B[e * rank : (e + 1) * rank].T @ (A @ token)) for e in range(experts)
        )
        shares = np.repeat(mean, rank)
        assert np.abs(found.B @ (found.s * shares * (found.A @ token)) - expected).max() <= 1e-12


def test_the_shape_tells_the_experts() -> None:
    made = {"lily_A.weight": np.ones((2, 5)), "lily_B.weight": np.ones((6, 4))}
    made["lily_router.weight"] = np.ones((3, 2))
    shape = RULE.describe(checkpoint("LILY", of_module(made), r=2, num_B=3)).shapes[Q]
    assert (shape.rank, shape.experts, shape.scale) == (6, 3, 1.0)


@pytest.mark.parametrize(
    ("changed", "fields", "message"),
    [
        ({}, {"num_B": 2}, r"lily_B.weight has shape \[6, 4\], expected \[4, 4\]"),
        ({}, {"r": 3}, "has rank 2 in the weights, expected 3"),
        (
            {"lily_router.weight": (3, 3)},
            {},
            r"lily_router.weight has shape \[3, 3\], expected \[3, 2\]",
        ),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], fields: dict[str, int], message: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"lily_A.weight": (2, 5), "lily_B.weight": (6, 4)}
    shapes |= {"lily_router.weight": (3, 2)} | changed
    arrays = of_module({name: np.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("LILY", arrays, **({"r": 2, "num_B": 3} | fields)))
