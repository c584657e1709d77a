"""C3A against circular correlation, output by output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.c3a import C3aRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, dense, of_module

RULE = C3aRule()
NONE = SmallBase({})
sizes = st.integers(1, 3)
# Sums of at most 12 products in double precision; normal values stay below 8.
TINY = 12 * 2 * 2.0**-53 * 8**2


@given(rows=sizes, columns=sizes, size=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_each_block_is_a_circular_correlation(
    rows: int, columns: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w, x = rng.normal(size=(rows, columns, size)), rng.normal(size=columns * size)
    held = checkpoint("C3A", of_module({"c3a_kernel": w}), block_size=size)
    found = dense(RULE, held, NONE)
    y = np.zeros((rows, size))
    for m in range(rows):
        for n in range(columns):
            for k in range(size):
                for j in range(size):
                    y[m, k] += w[m, n, j] * x[n * size + (j + k) % size]
    assert np.abs(found.delta @ x - y.reshape(-1) / len(x)).max() <= TINY


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "c3a_kernel has blocks of 4, expected 256"),
        ({"block_size": 4, "block_size_pattern": {"q_proj": 8}}, "blocks of 4, expected 8"),
        ({"block_size": 8, "block_size_pattern": {"proj": 4}}, "blocks of 4, expected 8"),
        ({"block_size_pattern": {"(": 8}}, r"'\(' in block_size_pattern is not a regular"),
    ],
)
def test_the_block_size_is_held_against_the_configuration(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("C3A", of_module({"c3a_kernel": np.ones((1, 2, 4))}), **fields))


def test_a_pattern_needs_a_dot_before_it() -> None:
    fields = {"block_size": 8, "block_size_pattern": {"q_proj": 4}}
    described = RULE.describe(
        checkpoint("C3A", of_module({"c3a_kernel": np.ones((1, 2, 4))}), **fields)
    )
    assert described.shapes[Q].in_features == 8
    top = of_module({"c3a_kernel": np.ones((1, 2, 4))}, "q_proj")
    fields["block_size_pattern"] = {"[qk]_proj": 4}
    with pytest.raises(AdapterError, match="blocks of 4, expected 8"):
        RULE.describe(checkpoint("C3A", top, **fields))


@pytest.mark.parametrize("module", [Q, "q_proj"])
def test_a_whole_path_is_a_pattern_unless_another_key_matches(module: str) -> None:
    top = of_module({"c3a_kernel": np.ones((1, 2, 4))}, module)
    given = {"block_size": 8, "block_size_pattern": {module: 4}}
    assert RULE.describe(checkpoint("C3A", top, **given)).shapes[module].in_features == 8
    if module == Q:
        given["block_size_pattern"] = {module: 4, "q_proj": 2}
        with pytest.raises(AdapterError, match="blocks of 4, expected 2"):
            RULE.describe(checkpoint("C3A", top, **given))
