"""DEFT against the projection written out, in all four forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.deft import DeftRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, lowered, of_module, update

RULE = DeftRule()
sizes = st.integers(1, 6)
# Sums of at most 6 * 6 products of four in double precision; normal values stay below 8. The
# factor Q of a random matrix loses a few digits where its columns are nearly dependent.
TINY = 36 * 4 * 2.0**-53 * 8**4
ORTHOGONAL = 1e-9


def householder(P: NDArray[Any]) -> NDArray[np.float64]:
    """The first factor, by reflections that give the diagonal the sign opposite to the column's."""
    out, rank = P.shape
    Q_full, R = np.eye(out), P.astype(np.float64).copy()
    for k in range(min(rank, out - 1)):
        v = R[k:, k].copy()
        v[0] += np.copysign(np.linalg.norm(v), v[0])
        H = np.eye(out)
        H[k:, k:] -= 2 * np.outer(v, v) / (v @ v)
        R, Q_full = H @ R, Q_full @ H
    return Q_full[:, :rank]


@given(
    out=sizes,
    inputs=sizes,
    rank=sizes,
    method=st.sampled_from(["relu", "qr"]),
    para=st.booleans(),
    alpha=st.sampled_from([None, 6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_subspace_is_replaced(
    out: int, inputs: int, rank: int, method: str, para: bool, alpha: int | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kept = min(rank, out)
    W, P, R = (rng.normal(size=s) for s in ((out, inputs), (out, kept), (kept, inputs)))
    tensors = {"deft_P": P} if para else {"deft_P": P, "deft_R": R}
    fields = {"decomposition_method": method, "para": para, "alpha": alpha, "r": rank}
    found = lowered(RULE, checkpoint("DEFT", of_module(tensors), **fields), SmallBase({Q: W}))
    left, right = P, np.where(P > 0, P, 0)
    if method == "qr":
        left = right = householder(P)
    expected = -(left @ right.T) @ W
    if not para:
        expected = expected + (alpha / kept if alpha else 1) * (left @ R)
    limit = ORTHOGONAL if method == "qr" else 6 * TINY
    assert np.abs(update(found) - expected).max() <= limit


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({"deft_P": (4, 2)}, {}, "the module has no deft_R"),
        ({"deft_P": (4, 2), "deft_R": (2, 5)}, {"para": True}, "has deft_R, expected none with pa"),
        ({"deft_P": (4, 2), "deft_R": (3, 5)}, {}, r"deft_R has shape \[3, 5\], expected \[2, 5\]"),
        ({"deft_P": (4, 3), "deft_R": (3, 5)}, {}, "has rank 3 in the weights, expected 2"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    tensors: dict[str, tuple[int, ...]], fields: dict[str, Any], message: str
) -> None:
    arrays = of_module({name: np.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("DEFT", arrays, r=2, **fields))
    assert caught.value.where.module == Q


def test_another_decomposition_is_refused() -> None:
    arrays = of_module({"deft_P": np.ones((4, 2))})
    held = checkpoint("DEFT", arrays, r=2, decomposition_method="svd")
    with pytest.raises(UnsupportedAdapterError, match="is 'svd', expected 'relu' or 'qr'"):
        RULE.describe(held)


def test_a_base_of_another_height_is_refused() -> None:
    arrays = of_module({"deft_P": np.ones((4, 2)), "deft_R": np.ones((2, 5))})
    with pytest.raises(AdapterError, match="the base's weight has 3 rows, expected 4 from"):
        lowered(RULE, checkpoint("DEFT", arrays, r=2), SmallBase({Q: np.ones((3, 5))}))
