"""LOHA against the elementwise product, linear and with cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.loha import LohaRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

Array = NDArray[Any]
RULE = LohaRule()
sizes = st.integers(1, 6)
# Sums of at most 25 products of four in double precision; normal values stay below 8.
TINY = 25 * 4 * 2.0**-53 * 8**4


@given(out=sizes, inputs=sizes, rank=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_the_update_is_the_elementwise_product(out: int, inputs: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, out, rank)), rng.normal(size=(2, rank, inputs))
    tensors = {"hada_w1_a": left[0], "hada_w1_b": right[0]}
    tensors |= {"hada_w2_a": left[1], "hada_w2_b": right[1]}
    found = lowered(RULE, checkpoint("LOHA", of_module(tensors), r=rank, alpha=5))
    expected = 5 / rank * (left[0] @ right[0]) * (left[1] @ right[1])
    assert np.abs(update(found) - expected).max() <= 5 * TINY
    assert found.rank == min(rank**2, out, inputs)


@pytest.mark.parametrize("kernel", [(3, 2), (3, 1), (3,)])
def test_cores_stand_between_the_parts(kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    t, a, b = (
        rng.normal(size=(2, 2, 2, *kernel)),
        rng.normal(size=(2, 2, 7)),
        rng.normal(size=(2, 2, 5)),
    )
    tensors: dict[str, Array] = {}
    halves: list[Array] = []
    for n in range(2):
        tensors |= {f"hada_t{n + 1}": t[n], f"hada_w{n + 1}_a": a[n], f"hada_w{n + 1}_b": b[n]}
        half = np.zeros((7, 5, *kernel))
        for i in range(2):
            for j in range(2):
                half += np.multiply.outer(np.outer(a[n][i], b[n][j]), t[n][i, j])
        halves.append(half)
    held = checkpoint("LOHA", of_module(tensors), r=2, alpha=2)
    shape = RULE.describe(held).shapes[Q]
    assert shape.kernel == (None if kernel[-1] == 1 else kernel)
    assert shape.in_features == (5 * 3 if shape.kernel is None else 5)
    ours = update(lowered(RULE, held)).reshape(halves[0].shape)
    assert np.abs(ours - halves[0] * halves[1]).max() <= TINY


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hada_w2_a": (7, 3)}, r"hada_w2_a has shape \[7, 3\], expected \[7, 2\]"),
        ({"hada_w2_b": (2, 6)}, r"hada_w2_b has shape \[2, 6\], expected \[2, 5\]"),
        ({"hada_t2": (2, 2, 3, 3)}, "the module has no hada_t1"),
        ({"hada_t1": (2, 2), "hada_t2": (2, 2)}, "hada_t1 has shape .* expected 3 or 4 axes"),
        (
            {"hada_w1_b": (3, 5), "hada_w1_a": (7, 3), "hada_w2_a": (7, 3), "hada_w2_b": (3, 5)},
            "has rank 3 in the weights, expected 2 from the configuration",
        ),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], message: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"hada_w1_a": (7, 2), "hada_w1_b": (2, 5)}
    shapes |= {"hada_w2_a": (7, 2), "hada_w2_b": (2, 5)} | changed
    arrays = of_module({name: np.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("LOHA", arrays, r=2))
    assert caught.value.where.module == Q
