from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lora_quant.encodings.encoding import Encoding, Granularity, NumberKind
from lora_quant.errors import EncodingsError

INT8: dict[str, Any] = {"bits": 8, "symmetric": True}


def test_the_symmetric_offset_is_unsigned_based() -> None:
    encoding = Encoding.per_tensor(0.5, bits=8, symmetric=True)
    assert (float(encoding.minimum), float(encoding.maximum)) == (-64.0, 63.5)
    assert float(encoding.stored_offset) == -128.0
    assert float(encoding.zero_point) == 0.0
    assert encoding.steps == 255


def test_the_range_is_that_of_exact_arithmetic_rounded_once() -> None:
    scale, offset = 0.00012078051655481870, -42608
    encoding = Encoding.per_tensor(scale, offset, bits=16, symmetric=False)
    assert float(encoding.minimum) == float(Fraction(scale) * offset)
    assert float(encoding.maximum) == float(Fraction(scale) * (offset + 65535))
    assert float(encoding.zero_point) == 42608.0


def test_lpbq_multiplies_channel_and_block_scale() -> None:
    encoding = Encoding.lpbq(
        [0.5, 0.25], [[1, 16], [3, 4]], compressed_bits=4, bits=8, block_size=8
    )
    assert encoding.step_scale.tolist() == [[0.5, 8.0], [0.75, 1.0]]
    assert encoding.minimum.tolist() == [[-4.0, -64.0], [-6.0, -8.0]]
    assert encoding.maximum.tolist() == [[3.5, 56.0], [5.25, 7.0]]
    assert encoding.steps == 15
    assert encoding.channels == 2


def test_arrays_are_copied_and_read_only() -> None:
    scale = np.array([1.0, 2.0])
    encoding = Encoding.per_channel(scale, **INT8)
    scale[0] = 5.0
    assert encoding.stored_scale.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        encoding.stored_scale[0] = 5.0


def test_a_channel_count_is_known_per_channel_only() -> None:
    assert Encoding.per_tensor(1.0, **INT8).channels is None
    assert Encoding.per_channel([1.0], **INT8).channels == 1
    assert Encoding.per_block([1.0, 2.0], block_size=4, **INT8).channels is None
    assert Encoding.per_block([[1.0, 2.0]], block_size=4, **INT8).channels == 1
    assert Encoding.floating(16).channels is None


def test_same_grid_compares_bits_and_ignores_only_unknown_axes() -> None:
    known = Encoding.per_channel([1.0, 2.0], axis=1, **INT8)
    unknown = Encoding.per_channel([1.0, 2.0], **INT8)
    assert known.same_grid(unknown)
    assert unknown.same_grid(known)
    assert not known.same_grid(Encoding.per_channel([1.0, 2.0], axis=0, **INT8))
    assert not known.same_grid(Encoding.per_channel([1.0, np.nextafter(2.0, 3.0)], **INT8))
    assert not known.same_grid(Encoding.per_channel([1.0], **INT8))
    assert not known.same_grid(Encoding.floating(16))
    assert Encoding.floating(16).same_grid(Encoding.floating(16))


def test_a_rank_1_weight_is_not_per_tensor() -> None:
    assert not Encoding.per_channel([1.0], **INT8).same_grid(Encoding.per_tensor(1.0, **INT8))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (Encoding.floating(16), "number kind: int and float"),
        (Encoding.per_channel([1.0], bits=4, symmetric=True, axis=0), "bits: 8 and 4"),
        (Encoding.per_channel([1.0], [0], bits=8, symmetric=False), "symmetry: True and False"),
        (Encoding.per_tensor(1.0, **INT8), "granularity: PER_CHANNEL and PER_TENSOR"),
        (Encoding.per_channel([1.0], axis=1, **INT8), "channel axis: 0 and 1"),
    ],
)
def test_the_first_difference_of_structure_is_named(other: Encoding, text: str) -> None:
    mine = Encoding.per_channel([1.0, 2.0], axis=0, **INT8)
    assert mine.structure.first_difference(other.structure) == text


def test_block_size_and_compressed_bits_are_structure() -> None:
    a = Encoding.lpbq([1.0], [[1]], compressed_bits=4, bits=8, block_size=16)
    b = Encoding.lpbq([1.0], [[1]], compressed_bits=2, bits=8, block_size=16)
    c = Encoding.lpbq([1.0], [[1]], compressed_bits=4, bits=8, block_size=32)
    assert a.structure.first_difference(b.structure) == "compressed bits: 4 and 2"
    assert a.structure.first_difference(c.structure) == "block size: 16 and 32"


REFUSED: list[tuple[Any, str]] = [
    (lambda: Encoding.per_tensor(0.0, **INT8), "scale is 0.0, expected a number > 0"),
    (lambda: Encoding.per_tensor(-1.0, **INT8), "scale is -1.0"),
    (lambda: Encoding.per_tensor(float("nan"), **INT8), "scale is nan"),
    (lambda: Encoding.per_tensor(1e39, **INT8), r"scale is 1e\+39, .*that float32 can hold"),
    (lambda: Encoding.per_tensor(1e-46, **INT8), "scale is 1e-46, .*that float32 can hold"),
    (lambda: Encoding.per_channel([1.0, 0.0], **INT8), r"scale\[1\] is 0.0"),
    (lambda: Encoding.per_tensor(1.0, 11, **INT8), "offset is 11.0, expected -255 to 0 for 8 bits"),
    (lambda: Encoding.per_tensor(1.0, -256, **INT8), "offset is -256.0, expected -255 to 0"),
    (lambda: Encoding.per_tensor(1.0, float("nan"), **INT8), "offset is nan"),
    (lambda: Encoding.per_tensor(1.0, -1.25, **INT8), "offset is -1.25, expected a whole number"),
    (
        lambda: Encoding.per_tensor(1.0, bits=8, symmetric=False),
        "asymmetric encoding needs an offset",
    ),
    (lambda: Encoding.per_tensor([1.0], **INT8), r"shape \[1\] does not fit PER_TENSOR"),
    (lambda: Encoding.per_channel(1.0, **INT8), r"shape \[\] does not fit PER_CHANNEL"),
    (lambda: Encoding.per_channel([], **INT8), "at least one scale"),
    (lambda: Encoding.per_channel([1.0], [0, 0], **INT8), r"shape \[1\] but offset has \[2\]"),
    (lambda: Encoding.per_tensor(1.0, bits=1, symmetric=True), "1 bits, expected 2 to 32"),
    (lambda: Encoding.per_tensor(1.0, bits=33, symmetric=True), "33 bits, expected 2 to 32"),
    (lambda: Encoding.per_block([1.0], block_size=0, **INT8), "block_size is 0"),
    (
        lambda: Encoding.per_block([[1.0]], block_size=4, axis=1, block_axis=1, **INT8),
        "axis 1 cannot be both",
    ),
    (lambda: Encoding.floating(12), "a float encoding of 12 bits, expected 16 or 32"),
    (
        lambda: Encoding.lpbq([1.0], [[17]], compressed_bits=4, bits=8, block_size=4),
        r"block scale\[0, 0\] is 17.0, expected an integer from 1 to 16",
    ),
    (
        lambda: Encoding.lpbq([1.0], [[1.5]], compressed_bits=4, bits=8, block_size=4),
        r"block scale\[0, 0\] is 1.5",
    ),
    (
        lambda: Encoding.lpbq([1.0], [[1], [2]], compressed_bits=4, bits=8, block_size=4),
        r"shape \[2, 1\] does not fit 1 channels",
    ),
    (
        lambda: Encoding.lpbq([1.0], [[1]], compressed_bits=8, bits=8, block_size=4),
        "8 compressed bits do not fit 8",
    ),
    (
        lambda: Encoding(NumberKind.INT, 8, Granularity.PER_TENSOR, True, np.ones(()), None),
        "needs both scale and offset",
    ),
    (
        lambda: Encoding(NumberKind.FLOAT, 16, Granularity.PER_TENSOR, False, np.ones(()), None),
        "a float encoding with a scale",
    ),
    (
        lambda: Encoding(
            NumberKind.INT, 8, Granularity.PER_TENSOR, True, np.ones(()), np.zeros(()), block_size=4
        ),
        "a PER_TENSOR encoding has no blocks",
    ),
    (
        lambda: Encoding(
            NumberKind.INT, 8, Granularity.LPBQ, True, np.ones(1), np.zeros(1), block_size=4
        ),
        "needs compressed bits and a block scale",
    ),
    (lambda: Encoding.floating(16).step_scale, "a float encoding has no grid"),
    (lambda: Encoding.floating(16).step_offset, "a float encoding has no grid"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_what_is_not_a_grid_is_refused(make: Any, text: str) -> None:
    with pytest.raises(EncodingsError, match=text):
        make()


def test_16_is_a_block_scale_of_4_bits() -> None:
    Encoding.lpbq([1.0], [[16]], compressed_bits=4, bits=8, block_size=4)


def test_half_step_offsets_are_those_of_2_bit_weights() -> None:
    encoding = Encoding.per_tensor(0.5, -1.5, bits=2, symmetric=True)
    assert (float(encoding.minimum), float(encoding.maximum)) == (-0.75, 0.75)
    assert float(encoding.zero_point) == -0.5
