"""Grids of new values in the structure of a known grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.like import grid_like
from lora_quant.encodings.quantize import dequantize, quantize
from lora_quant.errors import EncodingsError

VALUES = hnp.arrays(np.float32, (3, 8), elements=st.floats(-50, 50, width=32))

KNOWN = {
    "per tensor": Encoding.per_tensor(0.1, bits=8, symmetric=True),
    "asymmetric": Encoding.per_tensor(0.1, -30.0, bits=16, symmetric=False),
    "per channel": Encoding.per_channel([0.1] * 3, bits=8, symmetric=True, axis=0),
    "per column": Encoding.per_channel([0.1] * 8, bits=4, symmetric=True, axis=1),
    "blocks": Encoding.per_block(
        np.full((3, 2), 0.1), bits=8, symmetric=True, block_size=4, axis=0, block_axis=1, ndim=2
    ),
    "blocks along rows": Encoding.per_block(
        np.full((8, 1), 0.1), bits=8, symmetric=True, block_size=3, axis=1, block_axis=0, ndim=2
    ),
    "lpbq": Encoding.lpbq(
        np.full(3, 0.01),
        np.full((3, 2), 7.0),
        compressed_bits=4,
        bits=8,
        block_size=4,
        axis=0,
        block_axis=1,
        ndim=2,
    ),
}


@pytest.mark.parametrize("name", list(KNOWN))
@given(values=VALUES)
def test_values_are_on_the_new_grid_within_half_a_step(
    name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    """Rounding is half a step; an asymmetric end is rounded by another half; 1e-6 is float32's."""
    known = KNOWN[name]
    made = grid_like(known, values)
    assert made.structure == known.structure
    assert made.stored_scale.shape == known.stored_scale.shape
    steps = 0.5 if known.symmetric else 1.0
    lost = np.abs(dequantize(made, quantize(made, values)) - values)
    if made.granularity.value in ("PER_BLOCK", "LPBQ"):
        size, other = made.block_size or 1, made.block_axis == 0
        step = np.repeat(made.step_scale, size, axis=1)
        step = step.T if other else step
    else:
        step = made.step_scale
        if made.axis is not None:
            step = step.reshape([-1 if i == made.axis else 1 for i in range(2)])
    assert (lost <= step * (steps + 1e-4)).all()


def test_the_step_of_a_block_follows_its_own_values() -> None:
    """Blocks of 4 with a largest value of 12.7 and 1.27: steps of 0.1 and 0.01."""
    values = np.zeros((3, 8), np.float32)
    values[:, 0], values[:, 4] = 12.7, 1.27
    made = grid_like(KNOWN["blocks"], values)
    assert made.stored_scale == pytest.approx(np.array([[0.1, 0.01]] * 3), rel=2.0**-23)


def test_blocks_that_do_not_divide_the_axis_are_refused() -> None:
    with pytest.raises(EncodingsError, match="blocks of 4 do not divide axis 1"):
        grid_like(KNOWN["blocks"], np.zeros((3, 7)))


def test_blocks_whose_axes_are_not_known_are_refused() -> None:
    flat = Encoding.per_block([0.1] * 6, bits=8, symmetric=True, block_size=4)
    with pytest.raises(EncodingsError, match="axes of a blockwise encoding are not known"):
        grid_like(flat, np.zeros((3, 8)))


def test_what_stays_in_float_stays_in_float() -> None:
    single = Encoding.floating(32)
    assert grid_like(single, np.zeros((3, 8))) is single
