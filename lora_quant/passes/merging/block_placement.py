"""Blockwise grids of LoRA weights: unfolding what a dialect stores flat, and moving it to slots.

The blocks of A run along the inputs and go with its ranks; those of B run along the ranks, so that
a slot has to start at the beginning of a block.
"""

from __future__ import annotations

from dataclasses import replace

from lora_quant.encodings.algebra import place_blocks
from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.graph.records import Branch, TensorRecord
from lora_quant.passes.merging.contributions import Contribution


def resolved_blocks(given: Encoding, record: TensorRecord, axis: int, channels: int) -> Encoding:
    """A flat blockwise grid with the axes of the branch's weight, for the file's own ranks."""
    shape = list(record.shape)
    shape[axis] = channels
    return resolve(given, TensorFacts(tuple(shape), axis, 1 - axis))


def placed_blocks(given: Encoding, branch: Branch, items: tuple[Contribution, ...]) -> Encoding:
    """Move the blocks along the ranks of B to the slots; an adapter must not end inside one."""
    size = given.block_size or 1
    axis = branch.channel_axes[1]
    if given.channels is None:
        channels = branch.b_weight.shape[axis]
        shape = list(branch.b_weight.shape)
        shape[1 - axis] = given.step_scale.size // channels * size
        given = resolve(given, TensorFacts(tuple(shape), axis, 1 - axis))
    parts = []
    begin = 0
    for item in items:
        end = begin + -(-item.rank // size)
        parts.append((item.start, item.rank, block_range(given, begin, end)))
        begin = end
    return place_blocks(parts, branch.b_weight.shape[1 - axis])


def block_range(encoding: Encoding, begin: int, end: int) -> Encoding:
    """Blocks `[begin, end)` of every channel."""
    if encoding.block_scale is not None:
        return replace(encoding, block_scale=encoding.block_scale[:, begin:end])
    return replace(
        encoding,
        scale=encoding.stored_scale[:, begin:end],
        offset=encoding.stored_offset[:, begin:end],
    )
