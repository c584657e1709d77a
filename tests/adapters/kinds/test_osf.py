"""OSF against NumPy's singular value decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.osf import OsfRule, smallest_part
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, lowered, of_module, update

RULE = OsfRule()
sizes = st.integers(1, 7)


def with_values(values: Array, out: int, inputs: int, seed: int) -> Array:
    """A matrix with these singular values, so that the gap at a cut is known."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(out, out)))[0][:, : len(values)]
    right = np.linalg.qr(rng.normal(size=(inputs, inputs)))[0][:, : len(values)]
    made: Array = (left * values) @ right.T
    return made


@given(out=sizes, inputs=sizes, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_smallest_triplets_are_those_of_the_decomposition(
    out: int, inputs: int, seed: int, data: st.DataObject
) -> None:
    smaller = min(out, inputs)
    count = data.draw(st.integers(1, smaller))
    weight = with_values(np.arange(smaller, 0.0, -1), out, inputs, seed)
    B, A = smallest_part(weight, count)
    U, S, V = np.linalg.svd(weight, full_matrices=False)
    expected = (U[:, -count:] * S[-count:]) @ V[-count:]
    # squared values up to 49 and gaps of at least 1: 2**-53 * 49, times sums of 7 * 7 roundings
    assert np.abs(B @ A - expected).max() <= 49 * 49 * 7 * 2.0**-53


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_the_trained_part_takes_the_place_of_the_smallest(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    weight = with_values(np.array([5.0, 4, 3, 2, 1]), *shape, seed=2)
    U, S, V = rng.normal(size=(shape[0], 2)), rng.normal(size=2), rng.normal(size=(2, shape[1]))
    tensors = of_module(
        {f"osf_svd_params.{n}": v for n, v in (("U_low", U), ("S_low", S), ("V_low", V))}
    )
    held = checkpoint("OSF", tensors, effective_rank=3)
    found = lowered(RULE, held, SmallBase({Q: weight}))
    full_U, full_S, full_V = np.linalg.svd(weight, full_matrices=False)
    high = (full_U[:, :3] * full_S[:3]) @ full_V[:3]
    expected = high + U @ np.diag(S) @ V - weight
    assert np.abs(update(found) - expected).max() <= 25 * 64 * 2.0**-53 * 8**2
    assert found.rank == 4


def low(count: int, out: int = 6, inputs: int = 10) -> dict[str, Array]:
    return of_module(
        {
            "osf_svd_params.U_low": np.ones((out, count)),
            "osf_svd_params.S_low": np.ones(count),
            "osf_svd_params.V_low": np.ones((count, inputs)),
        }
    )


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 3),
        ({"effective_rank": 4}, 2),
        ({"effective_rank": 0.5}, 3),
        ({"effective_rank": 0.34}, 4),
        ({"effective_rank": 2, "rank_pattern": {"q_proj": 5}}, 1),
        ({"effective_rank": 2, "rank_pattern": {"k_proj": 5, "rs.0": 0.9}}, 1),
        ({"rank_pattern": None}, 3),
    ],
)
def test_the_effective_rank_is_the_configurations(fields: dict[str, Any], count: int) -> None:
    assert RULE.describe(checkpoint("OSF", low(count), **fields)).shapes[Q].rank == 2 * count
    message = rf"S_low has 5 values, expected {count}: the configuration keeps {6 - count} of 6"
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("OSF", low(5), **fields))


@pytest.mark.parametrize("value", [0, -1, "half", True])
def test_an_effective_rank_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(AdapterError, match=r"effective_rank is .*, expected a positive number"):
        RULE.describe(checkpoint("OSF", low(3), effective_rank=value))


def test_tensors_are_held_against_each_other() -> None:
    tensors = low(3) | {f"{Q}.osf_svd_params.S_low": np.ones(2)}
    with pytest.raises(AdapterError, match=r"S_low has shape \[2\], expected \[3\]"):
        RULE.describe(checkpoint("OSF", tensors))
    del tensors[f"{Q}.osf_svd_params.S_low"]
    with pytest.raises(AdapterError, match=r"but no osf_svd_params\.S_low"):
        RULE.describe(checkpoint("OSF", tensors))
