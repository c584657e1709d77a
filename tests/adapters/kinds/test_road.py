"""ROAD against 2 x 2 rotations, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.road import RoadRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, dense, of_module

RULE = RoadRule()
PER_PAIR = {"road_1": 1, "road_2": 2, "road_4": 4}
# Two products of three in double precision, and a sum; values stay below 8.
TINY = 16 * 2.0**-53 * 8**2


def matrix(variant: str, group: int, theta: Array, alpha: Array, out: int) -> Array:
    R, half = np.zeros((out, out)), group // 2
    for start in range(0, out, group):
        number = start // group
        for k in range(half):
            i, j = start + k, start + k + half
            if variant == "road_1":
                at = dict.fromkeys(("ii", "ij", "ji", "jj"), number * half + k)
            elif variant == "road_2":
                at = {"ii": i, "ij": i, "ji": j, "jj": j}
            else:
                first = 2 * number * group
                at = {"ii": first + k, "jj": first + half + k}
                at |= {"ij": first + group + k, "ji": first + group + half + k}
            R[i, i] = alpha[at["ii"]] * math.cos(theta[at["ii"]])
            R[i, j] = -alpha[at["ij"]] * math.sin(theta[at["ij"]])
            R[j, i] = alpha[at["ji"]] * math.sin(theta[at["ji"]])
            R[j, j] = alpha[at["jj"]] * math.cos(theta[at["jj"]])
    return R


@given(
    variant=st.sampled_from(sorted(PER_PAIR)),
    half=st.integers(1, 3),
    groups=st.integers(1, 3),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_outputs_and_bias_are_rotated_in_pairs(
    variant: str, half: int, groups: int, has_bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    group, out = 2 * half, 2 * half * groups
    theta, alpha = rng.normal(size=(2, out // 2 * PER_PAIR[variant]))
    weight, bias = rng.normal(size=(out, 3)), rng.normal(size=out)
    tensors = of_module({"road_theta": theta, "road_alpha": alpha})
    held = checkpoint("ROAD", tensors, variant=variant, group_size=group)
    base = SmallBase({Q: weight}, {Q: bias} if has_bias else {})
    found = dense(RULE, held, base)
    R = matrix(variant, group, theta, alpha, out)
    assert np.abs(weight + found.delta - R @ weight).max() <= TINY
    if has_bias:
        assert found.c is not None
        assert np.abs(bias + found.c - R @ bias).max() <= TINY
    else:
        assert found.c is None


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match="variant is 'road_3', expected one of road_"):
        RULE.describe(checkpoint("ROAD", {}, variant="road_3"))


@pytest.mark.parametrize(
    ("counts", "fields", "message"),
    [
        ((4, 3), {"group_size": 4}, r"road_alpha has shape \[3\], expected \[4\]"),
        ((4, 4), {"group_size": 6}, "4 values for road_1 in groups of 6, expected whole groups"),
        ((3, 3), {"group_size": 3}, "3 values for road_1 in groups of 3, expected whole groups"),
        ((6, 6), {"group_size": 2, "variant": "road_4"}, "6 values for road_4 in groups of 2"),
        ((4, 4), {}, "4 values for road_1 in groups of 64"),
    ],
)
def test_values_that_make_no_groups_are_refused(
    counts: tuple[int, int], fields: dict[str, Any], message: str
) -> None:
    tensors = {"road_theta": np.ones(counts[0]), "road_alpha": np.ones(counts[1])}
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("ROAD", of_module(tensors), **fields))
    assert caught.value.where.module == Q


def test_a_base_of_another_height_is_refused() -> None:
    tensors = of_module({"road_theta": np.ones(2), "road_alpha": np.ones(2)})
    held = checkpoint("ROAD", tensors, group_size=4)
    with pytest.raises(AdapterError, match="the base's weight has 6 rows, expected 4"):
        dense(RULE, held, SmallBase({Q: np.ones((6, 3))}))
