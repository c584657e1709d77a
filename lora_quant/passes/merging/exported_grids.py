"""Encodings of exported branches, as a graph would give them that holds the ranks as our slots do.

    A, B    channels and blocks in the order of the slots, as exported_weights has it
    a, m    cover all pieces
    l       the sum of the pieces

Pieces are branches that are chained at one module. A branch alone, without padding and in the order
of the slots, passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.products import sum_of, times
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import Branch, BranchedGraph, LinearNode
from lora_quant.passes.merging.contributions import Contribution
from lora_quant.passes.merging.exported_names import names_of_l, names_of_m
from lora_quant.passes.merging.exported_pieces import Piece, Pieces
from lora_quant.passes.merging.exported_weights import (
    Placed,
    grid_of_a,
    grid_of_b,
    in_our_layout,
    is_combined,
    resolved_weights,
)


@dataclass(eq=False)
class ExportedGrids:
    """Packs the grids of one file; `where` is its place, `as_read` that of resolved_weights."""

    file: EncodingFile
    where: Where
    as_read: Mapping[str, LinearNode]
    united: list[str] = field(default_factory=list)
    summed: list[str] = field(default_factory=list)

    def packed(
        self,
        branched: BranchedGraph,
        pieces: Pieces,
        active: Mapping[str, tuple[Contribution, ...]],
    ) -> dict[str, Encoding]:
        """By our names, what the file tells of the branches that the use case fills.

        Raises EncodingsError, naming the tensor, for grids that cannot be combined.
        """
        found: dict[str, Encoding] = {}
        for branch in branched.branches:
            point = branch.attach.name
            if point in pieces:
                self._weights(found, branch, pieces[point], active[point])
                self._activations(found, branch, pieces[point])
        return found

    def findings(self) -> Iterator[Finding]:
        """What chained branches do not tell of the one that takes their place."""
        if self.united:
            yield Finding(
                rule="encodings/chained-union",
                severity=Severity.NOTE,
                message=f"{len(self.united)} tensors of branches that are chained in the use "
                f"case's graph got the union of their ranges: {some(self.united)}",
                where=self.where,
            )
        if self.summed:
            yield Finding(
                rule="encodings/chained-sum",
                severity=Severity.NOTE,
                message=f"the encodings of {len(self.summed)} sums of branches that are chained in "
                "the use case's graph were computed from the sums of their ranges: "
                f"{some(self.summed)}",
                where=self.where,
            )

    def _weights(
        self,
        found: dict[str, Encoding],
        branch: Branch,
        pieces: Sequence[Piece],
        items: Sequence[Contribution],
    ) -> None:
        order = {(item.slot, item.part): number for number, item in enumerate(items)}
        ranks: list[Placed] = sorted(
            ((number, own) for number, piece in enumerate(pieces) for own in piece.ranks),
            key=lambda placed: order[placed[1].item.slot, placed[1].item.part],
        )
        for is_a, axis in zip((True, False), branch.channel_axes, strict=True):
            record = branch.a_weight if is_a else branch.b_weight
            linears = [piece.found.a if is_a else piece.found.b for piece in pieces]
            try:
                told = resolved_weights(self.file, linears, self.as_read)
                if not all(linear.weight in told for linear in linears):
                    continue
                grids = [in_our_layout(told[linear.weight], record, axis) for linear in linears]
                place = grid_of_a if is_a else grid_of_b
                found[record.name] = place(grids, ranks)
            except EncodingsError as error:
                raise self._at(record.name, error) from error
            if is_combined(grids[0], is_a=is_a):
                self._note_union(record.name, grids)

    def _activations(
        self, found: dict[str, Encoding], branch: Branch, pieces: Sequence[Piece]
    ) -> None:
        """a and m cover all pieces; l is their sum. What one piece lacks, the branch lacks.

        The gain of a Gemm is part of s: a has none of it, m that of B as well.
        """
        told: dict[str, list[Encoding | None]] = {branch.a: [], branch.m: [], branch.l: []}
        for piece in pieces:
            own = piece.found
            told[branch.a].append(self._scaled((own.a.product,), 1.0 / (own.a.gain or 1.0)))
            told[branch.m].append(self._scaled(names_of_m(own), own.b.gain))
            told[branch.l].append(self._scaled(names_of_l(own), 1.0))
        for tensor, grids in told.items():
            known = [grid for grid in grids if grid is not None]
            if len(known) < len(grids):
                continue
            try:
                found[tensor] = (sum_of if tensor == branch.l else union)(known)
            except EncodingsError as error:
                raise self._at(tensor, error) from error
            if tensor != branch.l:
                self._note_union(tensor, known)
            elif len(known) > 1:
                self.summed.append(tensor)

    def _scaled(self, names: Sequence[str], factor: float) -> Encoding | None:
        """What the file says of a tensor that one of several names may stand for."""
        given = next((self.file.encodings[n] for n in names if n in self.file.encodings), None)
        return None if given is None else times(given, factor, factor)

    def _note_union(self, tensor: str, grids: Sequence[Encoding]) -> None:
        if not all(grids[0].same_grid(other) for other in grids[1:]):
            self.united.append(tensor)

    def _at(self, tensor: str, error: EncodingsError) -> EncodingsError:
        where = replace(self.where, tensor=tensor)
        return EncodingsError(error.message, where=where, hint=error.hint)
