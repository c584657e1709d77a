"""Products with a weight that is read in tiles, against the whole of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.maths.weight_products import expect_weight, times_weight, weight_times
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Q, SmallBase

FILE = Path("adapter_model.safetensors")
sizes = st.integers(1, 7)


class Grouped(SmallBase):
    """A convolution in two groups: the weight has half of the inputs."""

    def sizes(self, module: str) -> BaseSizes:
        out, inner, *kernel = self.weights[module].shape
        return BaseSizes(2 * inner, out, tuple(kernel), groups=2)


@given(
    out=sizes,
    inputs=sizes,
    rank=sizes,
    kernel=st.sampled_from([(), (3,), (2, 3)]),
    grouped=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_make_the_products_of_the_whole_weight(
    out: int, inputs: int, rank: int, kernel: tuple[int, ...], grouped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(out, inputs, *kernel)).astype(np.float32)
    matrix = weight.astype(np.float64).reshape(out, -1)
    right, left = rng.normal(size=(matrix.shape[1], rank)), rng.normal(size=(out, rank))
    base = Grouped({Q: weight}) if grouped else SmallBase({Q: weight})
    # sums of at most 42 products of two in double precision; normal values stay below 8
    limit = 42 * 2 * 2.0**-53 * 8**2
    assert np.abs(weight_times(base, Q, right) - matrix @ right).max() <= limit
    assert np.abs(times_weight(base, Q, left) - left.T @ matrix).max() <= limit
    expect_weight(base, Q, FILE, out=out, columns=matrix.shape[1])


def test_sizes_that_disagree_are_named() -> None:
    base = SmallBase({Q: np.ones((3, 2, 2))})
    with pytest.raises(AdapterError) as caught:
        expect_weight(base, Q, FILE, out=3, columns=5)
    assert caught.value.message == (
        "the base's weight has 4 columns, expected 5 from the adapter's tensors"
    )
    assert caught.value.where.module == Q
    assert caught.value.where.file == FILE
