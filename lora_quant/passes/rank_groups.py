"""Attach points whose ranks are filled alike in every use case, so that one rank axis serves them.

    q_proj, v_proj:   tone: slot 0, 4 ranks    both: slot 0, 4 ranks; slot 1, 8 ranks     group 0
    o_proj:           tone: -                  both: slot 1, 8 ranks                      group 1

In the padded tensors slot i owns ranks [start, start + rank) everywhere. A use case that is stored
without padding keeps of them only what its modules fill, one after the other in the same order:
part after part of a fused projection, slot after slot. Points of one group then have equally many
ranks, with the same strengths, in every use case.

A branch with a router keeps all its ranks in their places: which of them belong to which expert is
told by their position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.contributions import Contribution, contributions
from lora_quant.passes.slots import Slot, SlotTable


@dataclass(frozen=True)
class RankBlock:
    """Ranks `[at, at + size)` of a group, which are `[start, start + size)` of the padded tensors.

    `size` counts the ranks that a module fills, rounded up to what slots are a multiple of.
    """

    slot: int
    start: int
    at: int
    size: int


@dataclass(frozen=True)
class RankGroup:
    """Attach points of one rank axis, by name, in graph order.

    `fills` has the blocks of each use case that fills the group. `width` is the number of ranks,
    None where every use case has as many as it fills. `in_place`: all ranks stay where the padded
    tensors have them.
    """

    number: int
    points: tuple[str, ...]
    fills: Mapping[str, tuple[RankBlock, ...]]
    width: int | None = None
    in_place: bool = False

    def ranks(self, use_case: str) -> int:
        """Length of the rank axis in a use case that fills the group."""
        if self.width is not None:
            return self.width
        last = self.fills[use_case][-1]
        return last.at + last.size

    def take(self, padded: NDArray[np.generic], axis: int, use_case: str) -> NDArray[np.generic]:
        """The ranks of one use case, out of a tensor whose `axis` has all parts of R ranks."""
        if self.in_place:
            return padded
        shape = list(padded.shape)
        shape[axis] = self.ranks(use_case)
        taken = np.zeros(shape, padded.dtype)
        for block in self.fills[use_case]:
            taken[_along(axis, block.at, block.size)] = padded[
                _along(axis, block.start, block.size)
            ]
        return taken

    def positions(self, use_case: str) -> tuple[int, ...]:
        """Which ranks of the padded tensors those of a use case are, but for zeros at the end."""
        if self.in_place:
            return tuple(range(self.ranks(use_case)))
        blocks = self.fills[use_case]
        return tuple(rank for b in blocks for rank in range(b.start, b.start + b.size))

    def expansion(
        self, use_case: str, slots: Sequence[Slot], slot_count: int
    ) -> NDArray[np.float32]:
        """E `[slots, ranks]`: the adapter-wide scale of each slot on the ranks that it fills."""
        matrix = np.zeros((slot_count, self.ranks(use_case)), np.float32)
        scales = {slot.index: slot.scale for slot in slots}
        for block in self.fills[use_case]:
            matrix[block.slot, block.at : block.at + block.size] = scales[block.slot]
        return matrix


def rank_groups(compilation: Compilation, *, fixed: Collection[str] = ()) -> tuple[RankGroup, ...]:
    """The groups in the order of their first points.

    `fixed` are the attach points whose rank axis cannot be open: it is as long as the fullest use
    case needs.
    """
    branched: BranchedGraph = compilation.having("branched")
    table: SlotTable = compilation.having("slots")
    by_use_case = {name: contributions(compilation, name) for name in table.use_cases}
    multiple = compilation.options.rank_multiple
    points: dict[_Signature, list[str]] = defaultdict(list)
    fills: dict[_Signature, Mapping[str, tuple[RankBlock, ...]]] = {}
    for branch in branched.branches:
        name = branch.attach.name
        filled = {
            use_case: _blocks(found[name], branch, multiple)
            for use_case, found in by_use_case.items()
            if name in found
        }
        width = _width(branch, filled, branched.max_rank, is_fixed=name in fixed)
        key = (tuple(filled.items()), width, branch.router is not None)
        points[key].append(name)
        fills[key] = filled
    return tuple(
        RankGroup(number, tuple(members), fills[key], width=key[1], in_place=key[2])
        for number, (key, members) in enumerate(points.items())
    )


_Signature = tuple[tuple[tuple[str, tuple[RankBlock, ...]], ...], int | None, bool]


def _blocks(items: Sequence[Contribution], branch: Branch, multiple: int) -> tuple[RankBlock, ...]:
    """The blocks of one use case; each is a multiple, as slots are in the padded tensors."""
    sizes: dict[tuple[int, int], int] = {}
    for item in items:
        place = (item.start, item.slot)
        rank = _rounded_up(item.rank, multiple)
        sizes[place] = max(rank, sizes.get(place, 0))
    blocks: list[RankBlock] = []
    end = 0
    for (start, slot), size in sorted(sizes.items()):
        at = start if branch.router is not None else end
        blocks.append(RankBlock(slot, start, at, size))
        end += size
    return tuple(blocks)


def _width(
    branch: Branch,
    fills: Mapping[str, tuple[RankBlock, ...]],
    max_rank: int,
    *,
    is_fixed: bool,
) -> int | None:
    if branch.router is not None:
        return max_rank * len(branch.attach.parts)
    if not is_fixed:
        return None
    return max((blocks[-1].at + blocks[-1].size for blocks in fills.values()), default=1)


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _along(axis: int, start: int, size: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, start + size))
