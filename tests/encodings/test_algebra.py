from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings.algebra import (
    channels_at,
    concat_channels,
    pad_channels,
    permute_channels,
    place_blocks,
    scaled,
    scatter_channels,
)
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import EncodingsError

A = Encoding.per_channel([1.0, 3.0, 2.0], [-5, -7, -9], bits=8, symmetric=False, axis=1)
PER_TENSOR = Encoding.per_tensor(1.0, bits=8, symmetric=True)
LPBQ = Encoding.lpbq([1.0, 2.0], [[1, 5], [3, 4]], compressed_bits=4, bits=8, block_size=4)


def block(scale: list[list[float]]) -> Encoding:
    return Encoding.per_block(
        scale, bits=8, symmetric=True, block_size=4, axis=0, block_axis=1, ndim=2
    )


def test_padding_repeats_the_channel_of_the_largest_scale() -> None:
    padded = pad_channels(A, 5)
    assert padded.stored_scale.tolist() == [1.0, 3.0, 2.0, 3.0, 3.0]
    assert padded.stored_offset.tolist() == [-5.0, -7.0, -9.0, -7.0, -7.0]
    assert padded.axis == 1


def test_scattering_places_channels_in_their_slots() -> None:
    placed = scatter_channels(A, [4, 0, 2], 6)
    assert placed.stored_scale.tolist() == [3.0, 3.0, 2.0, 3.0, 1.0, 3.0]


def test_blocks_and_block_scales_move_with_their_channel() -> None:
    placed = scatter_channels(LPBQ, [2, 0], 3)
    assert placed.stored_scale.tolist() == [2.0, 2.0, 1.0]
    assert placed.block_scale is not None
    assert placed.block_scale.tolist() == [[3.0, 4.0], [3.0, 4.0], [1.0, 5.0]]
    padded = pad_channels(block([[1.0, 9.0], [2.0, 3.0]]), 3)
    assert padded.stored_scale.tolist() == [[1.0, 9.0], [2.0, 3.0], [1.0, 9.0]]


@given(st.permutations(range(6)), st.lists(st.floats(0.5, 2), min_size=6, max_size=6))
def test_permuting_there_and_back_changes_nothing(order: list[int], scale: list[float]) -> None:
    encoding = Encoding.per_channel(scale, bits=8, symmetric=True)
    there = permute_channels(encoding, order)
    assert there.stored_scale.tolist() == [scale[i] for i in order]
    back = [order.index(i) for i in range(6)]
    assert permute_channels(there, back).same_grid(encoding)


@given(st.permutations(range(8)), st.integers(1, 8))
def test_scattered_channels_are_found_where_they_were_put(order: list[int], count: int) -> None:
    scale, positions = [float(i + 1) for i in range(count)], order[:count]
    placed = scatter_channels(Encoding.per_channel(scale, bits=8, symmetric=True), positions, 8)
    assert placed.stored_scale[positions].tolist() == scale
    others = set(order[count:])
    assert {placed.stored_scale[i] for i in others} <= {float(count)}


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_channels_are_picked_one_by_one(positions: list[int]) -> None:
    picked = channels_at(A, positions)
    assert picked.stored_scale.tolist() == [[1.0, 3.0, 2.0][i] for i in positions]
    assert picked.stored_offset.tolist() == [[-5.0, -7.0, -9.0][i] for i in positions]
    assert picked.axis == 1


def test_channels_that_are_not_there_cannot_be_picked() -> None:
    with pytest.raises(EncodingsError, match="not all among 3 channels"):
        channels_at(A, [0, 3])
    assert channels_at(PER_TENSOR, [0, 3]) is PER_TENSOR


def test_channels_are_concatenated_in_order() -> None:
    b = Encoding.per_channel([8.0], [0], bits=8, symmetric=False)
    joined = concat_channels([A, b, A])
    assert joined.stored_scale.tolist() == [1.0, 3.0, 2.0, 8.0, 1.0, 3.0, 2.0]
    assert joined.stored_offset.tolist() == [-5.0, -7.0, -9.0, 0.0, -5.0, -7.0, -9.0]


def test_per_tensor_and_float_encodings_do_not_change() -> None:
    for encoding in (PER_TENSOR, Encoding.floating(16)):
        assert pad_channels(encoding, 9) is encoding
        assert scatter_channels(encoding, [1], 4) is encoding
        assert permute_channels(encoding, [0]) is encoding
        assert concat_channels([encoding, encoding]) is encoding
        assert place_blocks([(0, 4, encoding), (4, 4, encoding)], 8) is encoding
    assert scaled(Encoding.floating(16), 3.0).scale is None


def test_scaling_multiplies_the_scale_and_keeps_the_offset() -> None:
    result = scaled(A, 0.5)
    assert result.stored_scale.tolist() == [0.5, 1.5, 1.0]
    assert result.stored_offset is not None
    assert result.stored_offset.tolist() == A.stored_offset.tolist()


def test_blocks_of_two_adapters_lie_beside_each_other() -> None:
    one, two = block([[1.0], [2.0]]), block([[3.0, 4.0], [6.0, 5.0]])
    placed = place_blocks([(8, 4, one), (0, 7, two)], 16)
    assert placed.stored_scale.tolist() == [[3.0, 4.0, 1.0, 4.0], [6.0, 5.0, 2.0, 6.0]]


def test_one_lpbq_adapter_is_padded_with_its_largest_block_scale() -> None:
    placed = place_blocks([(0, 8, LPBQ)], 12)
    assert placed.block_scale is not None
    assert placed.block_scale.tolist() == [[1.0, 5.0, 5.0], [3.0, 4.0, 4.0]]
    assert placed.stored_scale.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("parts", "count", "text"),
    [
        ([(0, 4, block([[1.0]]))], 10, "a width of 10 is not a multiple of the block size 4"),
        ([(2, 4, block([[1.0]]))], 8, "an adapter of rank 4 from 2 on cuts a block of 4"),
        ([(0, 9, block([[1.0]]))], 12, "an adapter of rank 9 from 0 on cuts a block"),
        (
            [(0, 2, block([[1.0]])), (0, 4, block([[1.0]]))],
            8,
            "does not fit beside the others in 8",
        ),
        ([(8, 4, block([[1.0]]))], 8, "does not fit beside the others in 8"),
        ([(0, 8, LPBQ), (8, 8, scaled(LPBQ, 2))], 16, "LPBQ encodings with different channel"),
        ([(0, 4, PER_TENSOR), (4, 4, scaled(PER_TENSOR, 2))], 8, "different grids cannot be put"),
        ([], 8, "there are no encodings"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(
    parts: list[tuple[int, int, Encoding]], count: int, text: str
) -> None:
    with pytest.raises(EncodingsError, match=text):
        place_blocks(parts, count)


def test_bad_arguments_are_refused() -> None:
    flat = Encoding.per_block([1.0, 2.0], bits=8, symmetric=True, block_size=4)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: pad_channels(A, 2), "3 channels cannot be padded to 2"),
        (lambda: permute_channels(A, [0, 0, 1]), r"\[0, 0, 1\] is not an order of 3 channels"),
        (lambda: scatter_channels(A, [0, 0, 1], 4), "3 channels need as many different positions"),
        (lambda: scatter_channels(A, [0, 1, 4], 4), "not all within 0 to 3"),
        (lambda: scatter_channels(A, [0, 1, -1], 4), "not all within 0 to 3"),
        (lambda: pad_channels(flat, 4), "number of channels of the block scales is not known"),
        (lambda: scaled(A, 0.0), "finite factor > 0, not by 0.0"),
        (lambda: scaled(A, float("inf")), "finite factor > 0, not by inf"),
        (lambda: scaled(A, 1e39), "that float32 can hold"),
        (lambda: concat_channels([PER_TENSOR, scaled(PER_TENSOR, 2)]), "cannot be concatenated"),
        (lambda: concat_channels([A, PER_TENSOR]), "cannot share one grid: symmetry"),
        (
            lambda: concat_channels([block([[1.0]]), block([[1.0, 2.0]])]),
            "same number of blocks per channel",
        ),
    ]
    for call, text in calls:
        with pytest.raises(EncodingsError, match=text):
            call()
