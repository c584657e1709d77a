"""Grids out of grids: unions, and channels and blocks put where the slots of the max rank are.

The functions are pure; every result passes the checks of Encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.structure import Structure
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]


def common_structure(encodings: Sequence[Encoding]) -> Structure:
    """The structure that all encodings share; EncodingsError names the first difference."""
    if not encodings:
        raise EncodingsError("there are no encodings to combine")
    first = encodings[0].structure
    for encoding in encodings[1:]:
        difference = first.first_difference(encoding.structure)
        if difference is not None:
            raise EncodingsError(
                f"the encodings cannot share one grid: {difference}",
                hint="only scale and offset may differ between use cases",
            )
    return first


def scaled(encoding: Encoding, factor: float) -> Encoding:
    """The grid of the values times `factor` > 0: scale * factor, the offset stays."""
    if not (np.isfinite(factor) and factor > 0):
        raise EncodingsError(f"a grid can be scaled by a finite factor > 0, not by {factor!r}")
    if encoding.kind is NumberKind.FLOAT:
        return encoding
    return replace(encoding, scale=encoding.stored_scale * factor)


def concat_channels(encodings: Sequence[Encoding]) -> Encoding:
    """The channels of several tensors one after the other: `[c1]`, `[c2]` -> `[c1 + c2]`.

    Per-tensor and float encodings have to be the same grid; a union makes them so.
    """
    common_structure(encodings)
    first = encodings[0]
    if first.granularity is Granularity.PER_TENSOR:
        if not all(first.same_grid(other) for other in encodings):
            raise EncodingsError(
                "per-tensor encodings with different grids cannot be concatenated",
                hint="use the union of the grids, or per-channel encodings",
            )
        return first
    for encoding in encodings:
        _channels(encoding)
    return _with_rows(first, [_rows(encoding) for encoding in encodings])


def permute_channels(encoding: Encoding, order: Sequence[int]) -> Encoding:
    """Channel i of the result is channel order[i]; per-tensor and float ones do not change.

    Raises EncodingsError unless `order` holds every channel once.
    """
    if encoding.granularity is Granularity.PER_TENSOR:
        return encoding
    channels = _channels(encoding)
    if sorted(order) != list(range(channels)):
        raise EncodingsError(f"{list(order)} is not an order of {channels} channels")
    index = np.asarray(order, dtype=np.intp)
    return _with_rows(encoding, [{name: a[index] for name, a in _rows(encoding).items()}])


def channels_at(encoding: Encoding, positions: Sequence[int]) -> Encoding:
    """Channel i of the result is channel positions[i]; per-tensor and float ones do not change.

    Raises EncodingsError for positions that the encoding does not have.
    """
    if encoding.granularity is Granularity.PER_TENSOR:
        return encoding
    channels = _channels(encoding)
    if not all(0 <= position < channels for position in positions):
        raise EncodingsError(f"{list(positions)} are not all among {channels} channels")
    index = np.asarray(positions, dtype=np.intp)
    return _with_rows(encoding, [{name: a[index] for name, a in _rows(encoding).items()}])


def scatter_channels(encoding: Encoding, positions: Sequence[int], count: int) -> Encoding:
    """Channel i at positions[i] of `count`; the others repeat the channel of the largest scale.

    The other channels hold zeros, for which any valid grid is exact. Per-tensor and float
    encodings do not change.
    """
    if encoding.granularity is Granularity.PER_TENSOR:
        return encoding
    channels = _channels(encoding)
    if len(positions) != channels or len(set(positions)) != channels:
        raise EncodingsError(f"{channels} channels need as many different positions")
    if not all(0 <= position < count for position in positions):
        raise EncodingsError(f"positions {list(positions)} are not all within 0 to {count - 1}")
    index = np.full(count, _largest_channel(encoding), dtype=np.intp)
    index[np.asarray(positions, dtype=np.intp)] = np.arange(channels)
    return _with_rows(encoding, [{name: a[index] for name, a in _rows(encoding).items()}])


def pad_channels(encoding: Encoding, count: int) -> Encoding:
    """Append channels up to `count`, as `scatter_channels` fills them."""
    if encoding.granularity is Granularity.PER_TENSOR:
        return encoding
    channels = _channels(encoding)
    if count < channels:
        raise EncodingsError(f"{channels} channels cannot be padded to {count}")
    return scatter_channels(encoding, range(channels), count)


def place_blocks(parts: Sequence[tuple[int, int, Encoding]], count: int) -> Encoding:
    """Put adapters, (start, rank, encoding) each, next to each other on a block axis of `count`.

    start, rank and count are in values of the tensor, not in blocks. Blocks that no adapter covers
    hold zeros and repeat the channel's largest scale. Encodings without blocks have to be the same
    grid. Raises EncodingsError if a start or `count` is not a multiple of the block size, or if
    two adapters would share a block: one scale cannot serve both.
    """
    encodings = [encoding for _, _, encoding in parts]
    common_structure(encodings)
    first = encodings[0]
    if first.granularity not in (Granularity.PER_BLOCK, Granularity.LPBQ):
        if not all(first.same_grid(other) for other in encodings):
            raise EncodingsError(
                "encodings with different grids cannot be put next to each other",
                hint="use the union of the grids",
            )
        return first
    size = first.block_size or 1
    if count % size:
        raise EncodingsError(
            f"a width of {count} is not a multiple of the block size {size}",
            hint="pad the max rank to a multiple of the block size",
        )
    if first.granularity is Granularity.LPBQ and len(parts) > 1:
        scales = [encoding.stored_scale for encoding in encodings]
        if not all(np.array_equal(scales[0], other) for other in scales):
            raise EncodingsError(
                "LPBQ encodings with different channel scales cannot be put next to each other",
                hint="calibrate the use case's own weights",
            )
    source = np.full(count // size, -1, dtype=np.intp)
    begin = 0
    for start, rank, encoding in parts:
        blocks = _block_count(encoding)
        if start % size or blocks != -(-rank // size):
            raise EncodingsError(
                f"an adapter of rank {rank} from {start} on cuts a block of {size}",
                hint="start every slot at a multiple of the block size",
            )
        stop = start // size + blocks
        taken = source[start // size : stop]
        if stop > source.size or (taken >= 0).any():
            raise EncodingsError(
                f"an adapter of rank {rank} from {start} on does not fit beside the others in "
                f"{count}",
                hint="start every slot at a multiple of the block size behind the slot before it",
            )
        taken[:] = np.arange(begin, begin + blocks)
        begin += blocks
    return _with_blocks(first, encodings, source)


def _with_blocks(
    first: Encoding, encodings: Sequence[Encoding], source: NDArray[np.intp]
) -> Encoding:
    free = source < 0
    if first.block_scale is not None:
        blocks = np.concatenate([_known(e.block_scale) for e in encodings], axis=1)
        placed = np.where(free, blocks.max(axis=1, keepdims=True), blocks[:, source])
        return replace(first, block_scale=placed)
    scale = np.concatenate([e.stored_scale for e in encodings], axis=1)
    offset = np.concatenate([e.stored_offset for e in encodings], axis=1)
    largest = scale.argmax(axis=1)[:, np.newaxis]
    index = np.where(free, largest, source)
    return replace(
        first,
        scale=np.take_along_axis(scale, index, axis=1),
        offset=np.take_along_axis(offset, index, axis=1),
    )


def _known(array: FloatArray | None) -> FloatArray:
    if array is None:
        raise EncodingsError("the encoding has no block scale")
    return array


def _block_count(encoding: Encoding) -> int:
    _channels(encoding)
    return int(encoding.step_scale.shape[1])


def _channels(encoding: Encoding) -> int:
    channels = encoding.channels
    if channels is None:
        raise EncodingsError(
            "the number of channels of the block scales is not known",
            hint="resolve the encoding with the shape of its tensor first",
        )
    return channels


def _largest_channel(encoding: Encoding) -> int:
    scale = encoding.step_scale
    return int(scale.reshape(scale.shape[0], -1).max(axis=1).argmax())


def _rows(encoding: Encoding) -> dict[str, FloatArray]:
    """The arrays of an encoding whose first axis is the channel."""
    rows = {"scale": encoding.stored_scale, "offset": encoding.stored_offset}
    if encoding.block_scale is not None:
        rows["block_scale"] = encoding.block_scale
    return rows


def _with_rows(encoding: Encoding, parts: Sequence[dict[str, FloatArray]]) -> Encoding:
    shapes = {part[name].shape[1:] for part in parts for name in part}
    if len({shape for shape in shapes if shape}) > 1:
        raise EncodingsError("the encodings do not have the same number of blocks per channel")
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return replace(
        encoding,
        scale=rows["scale"],
        offset=rows["offset"],
        block_scale=rows.get("block_scale"),
    )
