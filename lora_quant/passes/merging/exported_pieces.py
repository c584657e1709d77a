"""Where the ranks of an exported branch go in ours: file's ranks -> what an adapter contributes.

graph of the use case    tone: ranks 0-3        legal: ranks 4-11     (8 more of padding)
our branch               tone: ranks 0-3        legal: ranks 8-15     where slots are that wide

Chained branches of one module are several pieces of one branch of ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.graph.attach.resolver import Placement, Resolution
from lora_quant.graph.exported.records import FoundBranch
from lora_quant.graph.records import AttachPoint
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.exported.records import ExportedBranch, ExportedUseCase
from lora_quant.passes.merging.contributions import Contribution, contributions


@dataclass(frozen=True)
class PieceRanks:
    """Ranks `[begin, begin + size)` of an exported branch are those of `item`."""

    begin: int
    size: int
    item: Contribution


@dataclass(frozen=True)
class Piece:
    """One exported branch that holds ranks of adapters."""

    found: FoundBranch
    ranks: tuple[PieceRanks, ...]


Pieces = Mapping[str, tuple[Piece, ...]]


class Places:
    """Where the modules of a use case's graph are among our attach points.

    An adapter with weights of its own may call a module otherwise than the graph does; then what
    the base computes there tells the place.
    """

    def __init__(self, exported: ExportedUseCase, resolution: Resolution) -> None:
        self._exported = exported
        self._resolution = resolution
        self._by_output = {
            tensor: Placement(number, 0)
            for number, point in enumerate(resolution.points)
            for tensor in (point.linear.product, point.output)
            if len(point.parts) == 1
        }

    def find(self, module: str) -> tuple[AttachPoint, int] | None:
        """The attach point and the part of a module, None if no adapter is at it."""
        output = self._exported.base_names.get(self._exported.h[module], "")
        place = self._resolution.placements.get(module, self._by_output.get(output))
        return None if place is None else (self._resolution.points[place.point], place.part)


def pieces_of(exported: ExportedUseCase, compilation: Compilation) -> Pieces:
    """The pieces of every attach point that the use case fills, in graph order."""
    active = contributions(compilation, exported.name)
    places = Places(exported, compilation.having("resolution"))
    slots = {s.adapter: s.index for s in compilation.having("slots").use_cases[exported.name]}
    found: dict[str, list[Piece]] = defaultdict(list)
    for branch in exported.branches:
        place = places.find(branch.module)
        if place is None:
            continue
        point, part = place
        items = {(item.slot, item.part): item for item in active.get(point.name, ())}
        ranks = _ranks(branch, {name: items.get((slot, part)) for name, slot in slots.items()})
        if ranks:
            found[point.name].append(Piece(branch.found, ranks))
    return {point: tuple(pieces) for point, pieces in found.items()}


def _ranks(
    branch: ExportedBranch, items: Mapping[str, Contribution | None]
) -> tuple[PieceRanks, ...]:
    """`items` by adapter; what contributes nothing has no ranks."""
    found = []
    for own in branch.ranks:
        item = items.get(own.adapter)
        if item is not None and own.size:
            found.append(PieceRanks(own.begin, own.size, item))
    return tuple(found)
