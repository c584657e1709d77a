"""GRALORA against its blocks, computed one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.gralora import GraloraRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

Array = NDArray[Any]
RULE = GraloraRule()
# At most 6 products of normal values in double precision.
TINY = 64 * 2.0**-53


def tensors(k: int, part: int, out: int, r: int, hybrid: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([k, part, out, r])
    made = {"gralora_A": rng.normal(size=(k, part, r)), "gralora_B": rng.normal(size=(k, r, out))}
    if hybrid:
        made["gralora_A_general.weight"] = rng.normal(size=(hybrid, k * part))
        made["gralora_B_general.weight"] = rng.normal(size=(k * out, hybrid))
    return made


@given(
    k=st.integers(1, 3),
    part=st.integers(1, 4),
    out=st.integers(1, 4),
    block_rank=st.integers(1, 2),
    hybrid=st.integers(0, 2),
)
def test_every_block_has_an_update_of_its_own(
    k: int, part: int, out: int, block_rank: int, hybrid: int
) -> None:
    made = tensors(k, part, out, k * block_rank, hybrid)
    fields = {"r": k * block_rank, "gralora_k": k, "alpha": 6, "hybrid_r": hybrid}
    found = lowered(RULE, checkpoint("GRALORA", of_module(made), **fields))
    expected = np.zeros((k * out, k * part))
    for j in range(k):
        for n in range(k):
            of_a = slice(j * block_rank, (j + 1) * block_rank)
            of_b = slice(n * block_rank, (n + 1) * block_rank)
            A, B = made["gralora_A"][n][:, of_a].T, made["gralora_B"][j][of_b].T
            expected[j * out : (j + 1) * out, n * part : (n + 1) * part] = B @ A
    if hybrid:
        expected += made["gralora_B_general.weight"] @ made["gralora_A_general.weight"]
    expected *= 6 / (k * block_rank + hybrid)
    assert found.rank == k * k * block_rank + hybrid
    assert np.abs(update(found) - expected).max() <= TINY * 6 * 16


@pytest.mark.parametrize(
    ("made", "fields", "message"),
    [
        (tensors(2, 3, 3, 4), {"gralora_k": 4}, "has 2 blocks of rank 4, expected gralora_k = 4"),
        (tensors(2, 3, 3, 3), {"r": 3}, "has 2 blocks of rank 3, expected .* that they divide"),
        (tensors(2, 3, 3, 4), {"r": 8}, "has rank 4 in the weights, expected 8"),
        (tensors(2, 3, 3, 4), {"hybrid_r": 2}, "has rank 0, expected hybrid_r = 2"),
        (tensors(2, 3, 3, 4, 1), {}, "has rank 1, expected hybrid_r = 0"),
        (
            tensors(2, 3, 3, 4) | {"gralora_B": np.ones((2, 3, 3))},
            {},
            r"gralora_B has shape \[2, 3, 3\], expected \[2, 4, 3\]",
        ),
        (
            tensors(2, 3, 3, 4, 1) | {"gralora_A_general.weight": np.ones((1, 5))},
            {"hybrid_r": 1},
            r"has shape \[1, 5\], expected \[1, 6\]",
        ),
    ],
)
def test_tensors_that_contradict_the_configuration_are_refused(
    made: dict[str, Array], fields: dict[str, Any], message: str
) -> None:
    held = checkpoint("GRALORA", of_module(made), **({"r": 4, "gralora_k": 2} | fields))
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(held)
    assert caught.value.where.module == Q
