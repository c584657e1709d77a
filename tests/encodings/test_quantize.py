"""Against exact arithmetic on fractions, element by element."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.quantize import dequantize, grid_over, quantize
from lora_quant.errors import EncodingsError

SCALES = st.sampled_from([2.0**-10, 0.5, 1.0, 4.0])


@given(
    st.lists(st.integers(-3000, 3000).map(lambda i: i / 8), min_size=1, max_size=8),
    SCALES,
    st.integers(-255, 0),
)
def test_quantizing_rounds_half_to_even_and_clips(
    values: list[float], scale: float, offset: int
) -> None:
    encoding = Encoding.per_tensor(scale, offset, bits=8, symmetric=False)
    got = quantize(encoding, values)
    for value, q in zip(values, got.tolist(), strict=True):
        exact = round(Fraction(value) / Fraction(scale)) - offset  # Python rounds half to even
        assert q == min(max(exact, 0), 255)
    back = dequantize(encoding, got)
    for q, value in zip(got.tolist(), back.tolist(), strict=True):
        assert Fraction(value) == (Fraction(q) + offset) * Fraction(scale)


def test_ties_go_to_even_before_the_zero_point_is_added() -> None:
    encoding = Encoding.per_tensor(1.0, -127, bits=8, symmetric=False)
    assert quantize(encoding, [0.5, 1.5, -0.5]).tolist() == [127.0, 129.0, 127.0]


def test_a_half_step_grid_has_no_zero() -> None:
    encoding = Encoding.per_tensor(1.0, -1.5, bits=2, symmetric=True)
    steps = quantize(encoding, [-9.0, -0.4, 0.6, 1.4])
    assert dequantize(encoding, steps).tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_channels_lie_on_their_axis() -> None:
    values = np.full((2, 3), 8.0)
    by_column = Encoding.per_channel([1.0, 2.0, 4.0], bits=8, symmetric=True, axis=1)
    by_row = Encoding.per_channel([1.0, 2.0], bits=8, symmetric=True, axis=-2)
    assert quantize(by_column, values).tolist() == [[136.0, 132.0, 130.0]] * 2
    assert quantize(by_row, values).tolist() == [[136.0] * 3, [132.0] * 3]


@pytest.mark.parametrize(("axis", "block_axis"), [(0, 1), (1, 0)])
def test_blocks_lie_on_the_block_axis(axis: int, block_axis: int) -> None:
    encoding = Encoding.per_block(
        [[1.0, 2.0], [4.0, 8.0]],
        bits=8,
        symmetric=True,
        block_size=2,
        axis=axis,
        block_axis=block_axis,
        ndim=2,
    )
    scale, _ = grid_over(encoding, (2, 4) if axis == 0 else (4, 2))
    expected = [[1.0, 1.0, 2.0, 2.0], [4.0, 4.0, 8.0, 8.0]]
    assert (scale if axis == 0 else scale.T).tolist() == expected


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (Encoding.per_channel([1.0], bits=8, symmetric=True), "channel axis .* is not known"),
        (Encoding.per_channel([1.0], bits=8, symmetric=True, axis=0), r"do not fit .* \[2, 4\]"),
        (Encoding.per_channel([1.0], bits=8, symmetric=True, axis=2), "on axis 2 do not fit"),
        (
            Encoding.per_block([[1.0]], bits=8, symmetric=True, block_size=2, axis=0),
            "block axis of the encoding is not known",
        ),
        (
            Encoding.per_block(
                [[1.0], [1.0]], bits=8, symmetric=True, block_size=2, axis=0, block_axis=1
            ),
            "2 channels of 1 blocks of 2 do not fit",
        ),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(encoding: Encoding, text: str) -> None:
    with pytest.raises(EncodingsError, match=text):
        quantize(encoding, np.zeros((2, 4)))
