from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lora_quant.encodings.calibrate import MIN_RANGE, from_range, from_values
from lora_quant.encodings.encoding import Encoding, Granularity
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import EncodingsError

NETWORK = Path(__file__).parents[1] / "fixtures" / "aimet" / "network"


@pytest.mark.parametrize("network", ["base_plain", "lora_adapter_a", "lora_adapter_b"])
def test_weights_get_aimets_own_scales_bit_for_bit(network: str) -> None:
    """Channels of zeros aside (the padded ranks of adapter a), which AIMET gives a scale of its
    own; ours is the largest of the tensor."""
    file = read_encodings(NETWORK / f"{network}.v2.0.0.encodings")
    graph = onnx.load(str(NETWORK / f"{network}.fp32.onnx")).graph
    compared = 0
    for tensor in graph.initializer:
        theirs = file.encodings.get(tensor.name)
        if theirs is None or theirs.bits != 8:
            continue
        values = numpy_helper.to_array(tensor)
        ours = from_values(values, granularity=Granularity.PER_CHANNEL, axis=theirs.axis)
        filled = np.abs(values).max(axis=1 - (theirs.axis or 0)) > 0
        assert ours.stored_scale[filled].tolist() == theirs.stored_scale[filled].tolist()
        assert ours.stored_offset.tolist() == theirs.stored_offset.tolist()
        assert (ours.stored_scale[~filled] == ours.stored_scale.max()).all()
        compared += int(filled.sum())
    assert compared > 150


def test_the_alpha_input_gets_aimets_grid() -> None:
    theirs = read_encodings(NETWORK / "lora_adapter_a.v1.0.0.encodings").encodings["lora_alpha"]
    assert from_range(0.0, 1.0, bits=16).same_grid(theirs)


RANGES = st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)).map(sorted)


@given(RANGES, st.sampled_from([4, 8, 16]))
def test_a_symmetric_grid_covers_its_range(ends: list[float], bits: int) -> None:
    """To the rounding of the quotient and of the product, 2**-53 each."""
    encoding = from_range(*ends, bits=bits, symmetric=True)
    slack = 1 + 2.0**-51
    assert float(encoding.minimum) * slack <= ends[0]
    assert float(encoding.maximum) * slack >= ends[1]
    assert float(encoding.stored_offset) == -(2.0 ** (bits - 1))


@given(RANGES, st.sampled_from([4, 8, 16]))
def test_an_asymmetric_grid_misses_an_end_by_half_a_step_at_most(
    ends: list[float], bits: int
) -> None:
    """Half a step is the rounding of the offset; 2**-32 of it allows for double rounding in a sum
    of up to 2**16 steps."""
    encoding = from_range(*ends, bits=bits)
    half = 0.5 * float(encoding.stored_scale) * (1 + 2.0**-32)
    assert float(encoding.minimum) - half <= min(ends[0], 0)
    assert float(encoding.maximum) + half >= max(ends[1], 0)
    assert float(encoding.stored_offset) % 1 == 0


@given(
    st.lists(st.floats(-(2.0**-13), 2.0**-13, width=32), min_size=1, max_size=6),
    st.sampled_from([4, 8, 16]),
    st.booleans(),
)
def test_no_grid_is_narrower_than_the_least_range(
    values: list[float], bits: int, symmetric: bool
) -> None:
    encoding = from_values(
        np.array([values], np.float32),
        granularity=Granularity.PER_CHANNEL,
        axis=1,
        bits=bits,
        symmetric=symmetric,
    )
    assert (encoding.maximum - encoding.minimum >= MIN_RANGE).all()


def test_channels_of_zeros_get_the_largest_scale() -> None:
    encoding = from_range([0.0, -1.0, 0.0], [0.0, 0.0, 4.0], bits=8, axis=0)
    assert encoding.stored_scale.tolist() == [4 / 255, 1 / 255, 4 / 255]
    assert encoding.stored_offset.tolist() == [0.0, -255.0, 0.0]


def test_a_range_beside_zero_is_widened_to_zero() -> None:
    assert float(from_range(2.0, 4.0, bits=8).minimum) == 0.0
    assert float(from_range(-4.0, -2.0, bits=8).maximum) == 0.0


def test_streamed_ends_give_the_grid_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    low, high = np.full(8, np.inf), np.full(8, -np.inf)
    for rows in np.split(values, 4):
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    streamed = from_range(low, high, bits=8, symmetric=True, axis=1, single=True)
    whole = from_values(values, granularity=Granularity.PER_CHANNEL, axis=1)
    assert streamed.same_grid(whole)


def test_values_of_any_dtype_and_number_of_axes() -> None:
    kernel = np.zeros((2, 3, 1, 1), np.float16)
    kernel[1, 2] = -64.0
    encoding = from_values(kernel, granularity=Granularity.PER_CHANNEL, axis=0)
    assert encoding.stored_scale.tolist() == [0.5, 0.5]
    whole = from_values(kernel, granularity=Granularity.PER_TENSOR)
    assert whole.same_grid(Encoding.per_tensor(0.5, bits=8, symmetric=True))


def test_what_has_no_range_is_refused() -> None:
    channel = Granularity.PER_CHANNEL
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: from_range(1.0, 0.0, bits=8), "a minimum is above its maximum"),
        (lambda: from_range(0.0, float("inf"), bits=8), "the range is not finite"),
        (lambda: from_range([0.0], [float("nan")], bits=8), "the range is not finite"),
        (lambda: from_range([0.0], [1.0, 2.0], bits=8), r"got shapes \[1\] and \[2\]"),
        (lambda: from_range([[0.0]], [[1.0]], bits=8), r"got shapes \[1, 1\]"),
        (lambda: from_values(np.zeros((0, 3)), granularity=channel, axis=0), "has no range"),
        (lambda: from_values([1.0], granularity=channel), "axis None is not an axis"),
        (lambda: from_values([1.0], granularity=channel, axis=1), r"axis 1 .* of shape \[1\]"),
        (lambda: from_values([1.0], granularity=Granularity.LPBQ), "not LPBQ"),
    ]
    for call, text in calls:
        with pytest.raises(EncodingsError, match=text):
            call()
