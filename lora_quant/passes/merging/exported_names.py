"""From the tensor names of a use case's own graph to those of ours, by the graph's structure.

What a name is, its branches and its correspondence with the base tell; no spelling counts.

    A, B, a = A x, m, l of a branch      those of ours at the same module; several if it is chained
    h, y = the last sum                  the base's own output, which has another name, and the old
    another name of the same values      what that tensor is, where the file lacks it
    what lies between, scales, unread    known, without a counterpart
    any other tensor                     the one of the base that it corresponds to
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from lora_quant.graph.exported.records import FoundBranch, FoundScale, ScalePlace, ScaleSource
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.exported.records import ExportedUseCase
from lora_quant.passes.merging.exported_pieces import Piece, Places, pieces_of
from lora_quant.passes.merging.tensor_names import TensorNames, Translation


class ExportedNames:
    """Translates names of one use case's graph.

    `pieces` are its branches by attach point, as far as they hold ranks of adapters; `scale` names
    our tensors that carry strengths.
    `other_strengths` are inputs of it that carry lora_alpha / r as well, where ours has the
    strength alone, or the other way round.
    """

    def __init__(
        self,
        exported: ExportedUseCase,
        compilation: Compilation,
        names: TensorNames,
    ) -> None:
        self._compilation = compilation
        self._branched: BranchedGraph = compilation.having("branched")
        self._slots = compilation.having("slots").use_cases[exported.name]
        self._branches = {branch.attach.name: branch for branch in self._branched.branches}
        self._meant: dict[str, list[str]] = defaultdict(list)
        self.pieces = pieces_of(exported, compilation)
        self.scale = names.scale
        self.other_strengths: set[str] = set()
        self.as_read = exported.as_read
        for name in exported.other_names:
            self._meant[name] = []
        outputs = self._outputs(exported, names.base_side)
        for name, tensor in exported.base_names.items():
            if name not in outputs:
                self._meant[name].append(tensor)
        for name, tensors in outputs.items():
            self._meant[name] += tensors
        for point, found in self.pieces.items():
            # A merged graph has no branches.
            for piece in found if point in self._branches else ():
                self._add_branch(self._branches[point], piece)
        self._same = exported.same_names
        for name, tensor in self._same.items():
            self._meant[name] = self._meant.get(tensor, [])

    def translate(self, names: Iterable[str]) -> Translation:
        """Translate the names of one file.

        Where several mean one tensor, the first counts that is not another name of the same values.
        """
        given = list(names)
        found: dict[str, str] = {}
        for name in sorted(given, key=self._same.__contains__):
            for tensor in self._meant.get(name, ()):
                found.setdefault(tensor, name)
        unknown = tuple(name for name in given if name not in self._meant)
        return Translation(names=found, unknown=unknown, several={})

    def _outputs(
        self, exported: ExportedUseCase, base_side: Mapping[str, str]
    ) -> dict[str, list[str]]:
        """h and y of every module with a branch.

        Where our sum is another one, as behind a bias that the exported branch lies before, h is
        what the base calls by that name and y is none of ours.
        """
        places = Places(exported, self._compilation.having("resolution"))
        found: dict[str, list[str]] = {}
        for module, h in exported.h.items():
            place = places.find(module)
            ours = None if place is None else self._branches.get(place[0].name)
            known, y = exported.base_names.get(h), exported.y[module]
            if known is None:
                continue
            if ours is None:
                found[h], found[y] = [], [known]
            elif ours.y == known:
                found[h], found[y] = [base_side[known]], [known]
            else:
                found[h], found[y] = [known], []
        return found

    def _add_branch(self, ours: Branch, piece: Piece) -> None:
        found = piece.found
        for linear, weight in ((found.a, ours.a_weight), (found.b, ours.b_weight)):
            self._meant[linear.weight].append(weight.name)
            if linear.weight in self.as_read:
                self._meant[self.as_read[linear.weight].weight].append(weight.name)
        self._meant[found.a.product].append(ours.a)
        for name in names_of_l(found):
            self._meant[name].append(ours.l)
        for name in names_of_m(found):
            self._meant[name].append(ours.m)
        for scale in found.scales:
            if scale.source is not ScaleSource.CONSTANT:
                self._add_strength(scale, piece)

    def _add_strength(self, scale: FoundScale, piece: Piece) -> None:
        """The input of a strength; ours is meant if both carry the same."""
        record = self._branched.scale
        if record is None:
            return
        used = {ranks.item.slot for ranks in piece.ranks}
        factors = {slot.scale for slot in self._slots if slot.index in used}
        is_apart = scale.source is ScaleSource.EXPANDED or any(
            other.source is ScaleSource.CONSTANT for other in piece.found.scales
        )
        carries_factor = record.expansion is None
        if factors == {1.0} or is_apart != carries_factor:
            if record.alpha.name not in self._meant[scale.tensor]:
                self._meant[scale.tensor].append(record.alpha.name)
        else:
            self.other_strengths.add(scale.tensor)


def names_of_m(found: FoundBranch) -> tuple[str, ...]:
    """The exported graph's name of s * (A x); none where s, or a part of it, lies behind B."""
    is_whole = all(scale.place is ScalePlace.BETWEEN for scale in found.scales)
    return (found.m,) if found.scales and is_whole else ()


def names_of_l(found: FoundBranch) -> tuple[str, ...]:
    """The exported graph's names of what is added, from the sum on backwards."""
    if any(scale.place is ScalePlace.BEHIND for scale in found.scales):
        behind = [s.output for s in found.scales if s.place is ScalePlace.BEHIND]
        return tuple(dict.fromkeys((found.l, behind[-1])))
    return tuple(dict.fromkeys((found.l, found.b.product)))
