"""MISS against what it does to an input: fold it, then multiply; and bat block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.miss import BoneRule, MissRule
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, dense, lowered, of_module, update

Array = NDArray[Any]
RULE = MissRule()
# Sums of at most 16 products of normal values in double precision.
TINY = 16 * 16 * 2.0**-53


def base(out: int, inputs: int) -> SmallBase:
    return SmallBase({Q: np.random.default_rng(0).normal(size=(out, inputs))})


def folded(x: Array, r: int) -> Array:
    padded = np.concatenate([x, np.zeros(-len(x) % r)])
    folds: Array = padded.reshape(-1, r).sum(axis=0)
    return folds


@given(
    r=st.integers(1, 5),
    columns=st.integers(1, 4),
    copies=st.integers(1, 3),
    inputs=st.integers(5, 12),
)
def test_the_input_is_folded_and_the_output_repeated(
    r: int, columns: int, copies: int, inputs: int
) -> None:
    rng = np.random.default_rng([r, columns, copies, inputs])
    block, x = rng.normal(size=(r, columns)), rng.normal(size=inputs)
    fields: dict[str, Any] = {"r": r, "init_weights": "mini", "mini_r": columns}
    if copies == 1:
        fields = {"r": r, "init_weights": True}
    held = checkpoint("MISS", of_module({"miss_block": block}), **fields)
    found = lowered(RULE, held, base(columns * copies, inputs))
    assert np.abs(update(found) @ x - np.tile(folded(x, r) @ block, copies)).max() <= TINY * 8


@given(r=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_bat_multiplies_and_adds_to_every_block(r: int, rows: int, columns: int) -> None:
    on = base(rows * r, columns * r)
    block = np.random.default_rng([r, rows]).normal(size=(rows, r, r))
    for rule, name in ((RULE, "miss_block"), (BoneRule(), "bone_block")):
        held = checkpoint(rule.kind, of_module({name: block}), r=r, init_weights="bat")
        delta = dense(rule, held, on).delta
        for i in range(rows):
            for j in range(columns):
                place = slice(i * r, (i + 1) * r), slice(j * r, (j + 1) * r)
                expected = on.weights[Q][place] @ block[i] + block[i]
                assert np.abs(delta[place] - expected).max() <= TINY


@pytest.mark.parametrize(
    ("variant", "shape", "need"),
    [(True, (2, 6), Need.SIZES), ("mini", (2, 3), Need.SIZES), ("bat", (3, 2, 2), Need.WEIGHT)],
)
def test_the_base_tells_what_the_file_does_not(
    variant: object, shape: tuple[int, ...], need: Need
) -> None:
    held = checkpoint(
        "MISS", of_module({"miss_block": np.ones(shape)}), r=2, mini_r=3, init_weights=variant
    )
    found = RULE.describe(held).shapes[Q]
    assert (found.need, found.in_features) == (need, None)
    assert found.out_features == (None if variant == "mini" else 6)


@pytest.mark.parametrize(
    ("variant", "shape", "message"),
    [
        (True, (3, 6), "has rank 3 in the weights, expected 2"),
        (True, (3, 2, 2), r"the tensor has shape \[3, 2, 2\], expected 2 axes"),
        ("bat", (2, 6), r"the tensor has shape \[2, 6\], expected 3 axes"),
        ("bat", (3, 2, 4), r"miss_block has shape \[3, 2, 4\], expected \[3, 2, 2\]"),
        ("mini", (2, 6), r"miss_block has shape \[2, 6\], expected \[2, 4\] from mini_r"),
    ],
)
def test_tensors_that_contradict_the_configuration_are_refused(
    variant: object, shape: tuple[int, ...], message: str
) -> None:
    arrays = of_module({"miss_block": np.ones(shape)})
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("MISS", arrays, r=2, mini_r=4, init_weights=variant))


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(
        UnsupportedAdapterError, match="init_weights is 'dot', expected true, false"
    ):
        RULE.describe(checkpoint("MISS", {}, init_weights="dot"))


@pytest.mark.parametrize(
    ("variant", "shape", "on", "message"),
    [
        ("mini", (2, 4), base(6, 8), "out of the base is 6, expected a multiple of 4"),
        ("bat", (3, 2, 2), base(8, 8), "out is 6, expected 8 as in the base"),
        ("bat", (4, 2, 2), base(8, 7), "in of the base is 7, expected a multiple of 2"),
    ],
)
def test_a_base_of_other_sizes_is_refused(
    variant: str, shape: tuple[int, ...], on: SmallBase, message: str
) -> None:
    arrays = of_module({"miss_block": np.ones(shape)})
    held = checkpoint("MISS", arrays, r=2, mini_r=4, init_weights=variant)
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.lower(held, RULE.describe(held).shapes[Q], on)
    assert caught.value.where.module == Q


def test_without_a_base_it_is_asked_for() -> None:
    held = checkpoint("MISS", of_module({"miss_block": np.ones((2, 6))}), r=2)
    with pytest.raises(UnsupportedAdapterError, match="with the sizes of the base's module"):
        RULE.lower(held, RULE.describe(held).shapes[Q], None)
