"""Grids of exported A and B, with their channels and blocks in the order of our slots.

    A    [channels of tone, of legal, padding]  ->  those of the first slot, those of the second
    B    blocks along the ranks move likewise; a grid per tensor or per output covers all pieces

A block of B that two adapters share has one scale for both, and cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.algebra import (
    channels_at,
    common_structure,
    concat_channels,
    place_blocks,
)
from lora_quant.encodings.convert import TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError
from lora_quant.graph.records import LinearNode, TensorRecord
from lora_quant.passes.merging.block_placement import block_range
from lora_quant.passes.merging.exported_pieces import PieceRanks

Placed = tuple[int, PieceRanks]
"""The number of a piece, and ranks of it."""


def resolved_weights(
    file: EncodingFile, linears: Iterable[LinearNode], as_read: Mapping[str, LinearNode]
) -> dict[str, Encoding]:
    """The grids that the file tells of the weights of nodes, by the names of the weights.

    `as_read`: weight -> its node as it reads what a change of layout or type makes of the weight,
    which is the tensor of the grid where the file has none of the weight itself.

    Channels and blocks are told apart by the nodes: blocks come as `[channels, blocks]`, and one
    entry of 0.6.1 is a channel where the file's header says so. Raises EncodingsError, naming the
    tensor, for a grid of another shape.
    """
    facts: dict[str, TensorFacts] = {}
    weights: dict[str, Encoding] = {}
    for linear in linears:
        read = as_read.get(linear.weight, linear)
        told = linear if linear.weight in file.encodings else read
        if told.weight in file.encodings:
            facts[linear.weight] = _facts(told)
            weights[linear.weight] = file.encodings[told.weight]
    alone = EncodingFile(file.version, weights, frozenset(weights), file.header)
    return dict(convert(alone, aimet_1_0_0.VERSION, facts).encodings)


def in_our_layout(grid: Encoding, record: TensorRecord, axis: int) -> Encoding:
    """The same grid with the axes of our weight, whose channels lie on `axis`."""
    if grid.granularity in BLOCKWISE:
        return replace(grid, axis=axis, block_axis=1 - axis, ndim=len(record.shape))
    return replace(grid, axis=None)


def grid_of_a(grids: Sequence[Encoding], ranks: Sequence[Placed]) -> Encoding:
    """The grid of the ranks of all pieces, in the order of `ranks`; per tensor the union."""
    common_structure(grids)
    if grids[0].scale is None or grids[0].granularity is Granularity.PER_TENSOR:
        return union(grids)
    return concat_channels(
        [channels_at(grids[n], range(own.begin, own.begin + own.size)) for n, own in ranks]
    )


def grid_of_b(grids: Sequence[Encoding], ranks: Sequence[Placed]) -> Encoding:
    """The grid of the columns of all pieces; each adapter begins a block of its own.

    Raises EncodingsError if an adapter begins inside a block.
    """
    common_structure(grids)
    size = grids[0].block_size
    if size is None:
        return union(grids)
    parts = []
    start = 0
    for number, own in ranks:
        if own.begin % size:
            raise EncodingsError(
                f"an adapter's ranks begin at {own.begin} in the use case's graph, inside a block "
                f"of {size} of lora_B",
                hint="calibrate the use case with smaller blocks, or lora_B per channel",
            )
        first, count = own.begin // size, -(-own.size // size)
        parts.append((start, own.size, block_range(grids[number], first, first + count)))
        start += count * size
    return place_blocks(parts, start)


def is_combined(grid: Encoding, *, is_a: bool) -> bool:
    """Whether several pieces share one scale, where each had its own."""
    whole = grid.granularity is Granularity.PER_TENSOR
    return whole if is_a else grid.block_size is None


def _facts(linear: LinearNode) -> TensorFacts:
    """Shape and axes of a weight as it is stored."""
    if linear.conv is not None:
        inputs = linear.in_features // linear.conv.groups
        return TensorFacts((linear.out_features, inputs, *linear.conv.kernel), 0, 1)
    if linear.weight_is_in_out:
        return TensorFacts((linear.in_features, linear.out_features), 1, 0)
    return TensorFacts((linear.out_features, linear.in_features), 0, 1)
