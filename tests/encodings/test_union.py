from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.running_union import RunningUnion
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError

SCALES = st.floats(2.0**-20, 2.0**10, allow_nan=False)


@st.composite
def grids(
    draw: st.DrawFn, symmetric: bool = False, widths: tuple[int, ...] = (4, 8, 16)
) -> list[Encoding]:
    bits = draw(st.sampled_from(widths))
    channels = draw(st.integers(1, 4))
    offset = st.just(-(2 ** (bits - 1))) if symmetric else st.integers(-(2**bits) + 1, 0)
    return [
        Encoding.per_channel(
            draw(st.lists(SCALES, min_size=channels, max_size=channels)),
            draw(st.lists(offset, min_size=channels, max_size=channels)),
            bits=bits,
            symmetric=symmetric,
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


def smallest_scale(low: Fraction, high: Fraction, steps: int) -> Fraction:
    """The least scale over every offset -k, exactly."""
    found = []
    for k in range(steps + 1):
        if (low < 0 and k == 0) or (high > 0 and k == steps):
            continue
        left = -low / k if k else Fraction(0)
        right = high / (steps - k) if k < steps else Fraction(0)
        found.append(max(left, right))
    return min(found)


@given(grids())
def test_the_union_covers_every_range_with_a_whole_offset(encodings: list[Encoding]) -> None:
    result = union(encodings)
    assert result.structure == encodings[0].structure
    for encoding in encodings:
        assert (result.minimum <= encoding.minimum).all()
        assert (result.maximum >= encoding.maximum).all()
    assert (result.stored_offset % 1 == 0).all()


@given(grids(widths=(4, 8)))
def test_no_smaller_grid_covers_the_ranges(encodings: list[Encoding]) -> None:
    """Within 8 * 2**-52: the ends are rounded once, the quotient once, then at most a few steps of
    one unit until the rounded product covers the end. 16 bits would be slow in fractions."""
    result = union(encodings)
    low = np.min([e.minimum for e in encodings], axis=0)
    high = np.max([e.maximum for e in encodings], axis=0)
    for channel, scale in enumerate(result.stored_scale.tolist()):
        exact = smallest_scale(
            Fraction(float(low[channel])), Fraction(float(high[channel])), result.steps
        )
        assert Fraction(scale) <= exact * (1 + Fraction(8, 2**52))


@given(st.booleans().flatmap(grids))
def test_order_does_not_matter(encodings: list[Encoding]) -> None:
    first = union(encodings)
    assert all(union(list(order)).same_grid(first) for order in permutations(encodings))


@given(grids(), st.integers(1, 3))
def test_the_union_of_one_grid_and_of_the_union_is_itself(
    encodings: list[Encoding], times: int
) -> None:
    assert union([encodings[0]] * times).same_grid(encodings[0])
    result = union(encodings)
    assert union([result, *encodings]).same_grid(result)


@given(grids(symmetric=True))
def test_symmetric_grids_keep_their_offset_and_take_the_largest_scale(
    encodings: list[Encoding],
) -> None:
    result = union(encodings)
    assert (result.stored_offset == -(2.0 ** (result.bits - 1))).all()
    expected = [
        max(column) for column in zip(*(e.stored_scale.tolist() for e in encodings), strict=True)
    ]
    assert result.stored_scale.tolist() == expected


def test_signed_grids_with_other_offsets_become_symmetric() -> None:
    a = Encoding.per_tensor(1.0, 0, bits=8, symmetric=True)
    b = Encoding.per_tensor(1.0, -255, bits=8, symmetric=True)
    result = union([a, b])
    assert float(result.stored_offset) == -128.0
    assert float(result.stored_scale) == 255 / 127


def test_per_tensor_grids_of_adapters_become_one() -> None:
    a = Encoding.per_tensor(0.5, -10, bits=8, symmetric=False)  # -5 .. 122.5
    b = Encoding.per_tensor(0.25, -200, bits=8, symmetric=False)  # -50 .. 13.75
    result = union([a, b])
    # 255 * 50 / 172.5 = 73.9; 74 steps below zero leave 181 above, 122.5 / 181 > 50 / 74.
    assert float(result.stored_offset) == -74.0
    assert float(result.stored_scale) == 122.5 / 181


def test_float_encodings_stay() -> None:
    assert union([Encoding.floating(16), Encoding.floating(16)]).bits == 16


def test_equal_lpbq_grids_stay_and_different_ones_are_refused() -> None:
    a = Encoding.lpbq([1.0], [[2]], compressed_bits=4, bits=8, block_size=4)
    b = Encoding.lpbq([1.0], [[3]], compressed_bits=4, bits=8, block_size=4)
    assert union([a, a]).same_grid(a)
    with pytest.raises(EncodingsError, match="different LPBQ grids have no union"):
        union([a, b])


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([], "there are no encodings"),
        (
            [
                Encoding.per_tensor(1.0, bits=8, symmetric=True),
                Encoding.per_tensor(1.0, bits=4, symmetric=True),
            ],
            "cannot share one grid: bits: 8 and 4",
        ),
        (
            [
                Encoding.per_channel([1.0], bits=8, symmetric=True),
                Encoding.per_channel([1.0, 2.0], bits=8, symmetric=True),
            ],
            r"different numbers of scales: \[\(1,\), \(2,\)\]",
        ),
        (
            [
                Encoding.per_tensor(1.0, -1.5, bits=2, symmetric=True),
                Encoding.per_tensor(1.0, -2, bits=2, symmetric=True),
            ],
            "half-step grids have no union",
        ),
    ],
)
def test_grids_without_a_union_are_refused(others: list[Encoding], text: str) -> None:
    with pytest.raises(EncodingsError, match=text):
        union(others)


@given(grids())
def test_the_running_union_is_the_union(encodings: list[Encoding]) -> None:
    running = RunningUnion()
    for encoding in encodings:
        running.add(encoding)
    assert running.result().same_grid(union(encodings))
    assert running.differs == any(not e.same_grid(encodings[0]) for e in encodings)
