"""The encodings of a pack: against its graph, for devices, and against those of other use cases.

base_encodings.json             covers every branch; its grid of the alpha input holds all strengths
both/quant_overrides.json       the same, and the structure of every grid is that of the base
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lora_quant.config.manifest_records import AlphaRecord, PackFile, TargetRecord
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import some
from lora_quant.findings import Finding
from lora_quant.graph.files.graph_facts import GraphFacts
from lora_quant.validation.catalogue.device import STRENGTH_CLIPS
from lora_quant.validation.catalogue.encodings_of_graph import UNCOVERED
from lora_quant.validation.device.encodings import encodings_for_devices, meetings_for_devices
from lora_quant.validation.device.use_cases import StructuresOfUseCases
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.linked.encodings import encodings_against_graph
from lora_quant.validation.linked.graph_of import facts_if_readable
from lora_quant.validation.pack.view import PackView
from lora_quant.validation.rule import Level

_WEIGHT_ROLES = ("a_weight", "b_weight")


@dataclass
class PackEncodings:
    """Takes the encodings of one target: those of the base first, then use case by use case."""

    view: PackView
    target: TargetRecord
    levels: frozenset[Level]
    structures: StructuresOfUseCases = field(
        default_factory=lambda: StructuresOfUseCases(complete=True)
    )

    def take(self, file: PackFile, check: DocumentCheck) -> Iterator[Finding]:
        """Findings of one more file; none if it could not be read."""
        content = check.content
        if check.document is None or not isinstance(content, EncodingFile):
            return
        places = _placed(entry_places(check.document), file)
        facts = self._facts() if self.levels & {Level.CROSS_FILE, Level.DEVICE} else None
        if Level.CROSS_FILE in self.levels and facts is not None:
            yield from encodings_against_graph(content, facts, places, branches=True)
            yield from self._branches(content, facts, places)
        if Level.DEVICE in self.levels:
            tensors = self.view.manifest.tensors
            weights = [t.name for t in tensors if t.role in _WEIGHT_ROLES]
            yield from encodings_for_devices(content, places, branch_weights=weights)
            if facts is not None:
                yield from meetings_for_devices(content, facts, places)
            owner = "base" if file.use_case is None else f"use case {file.use_case}"
            yield from self.structures.take(owner, content.encodings, places)
            yield from self._strengths(file, content, places)

    def _facts(self) -> GraphFacts | None:
        graph = next(self.view.files(self.target, "graph"), None)
        return None if graph is None else facts_if_readable(self.view.locate(graph.path))

    def _branches(
        self, content: EncodingFile, facts: GraphFacts, places: Places
    ) -> Iterator[Finding]:
        """Every tensor of a branch that is computed with has a grid."""
        missing = [
            name
            for name in self._needed()
            if name not in content.encodings and _is_float(facts, name)
        ]
        if missing:
            where = replace(places(None), tensor=missing[0])
            yield UNCOVERED.finding(
                f"{len(missing)} tensors of branches without an encoding: {some(missing)}", where
            )

    def _needed(self) -> list[str]:
        manifest = self.view.manifest
        names: list[str] = []
        alpha = manifest.alpha_of(self.target)
        if alpha is not None:
            names.append(alpha.tensor)
        for point in manifest.attach_points:
            branch = point.tensors
            if branch is not None:
                names += [branch.a_weight, branch.b_weight, branch.a, branch.m, branch.l, branch.y]
            names += [name for v in point.vectors for name in (v.weight, v.output)]
        return names

    def _strengths(
        self, file: PackFile, content: EncodingFile, places: Places
    ) -> Iterator[Finding]:
        """Strengths of the use cases that the grid of the input clips; looked at in the base's."""
        alpha = self.view.manifest.alpha_of(self.target)
        grid = None if alpha is None else content.encodings.get(alpha.tensor)
        if file.use_case is not None or alpha is None or grid is None or grid.scale is None:
            return
        low, high = float(grid.minimum.min()), float(grid.maximum.max())
        slack = (high - low) / grid.steps
        for name, adapter, strength in self._given_strengths(alpha):
            if not low - slack <= strength <= high + slack:
                yield STRENGTH_CLIPS.finding(
                    f"the strength {strength:g} of {adapter!r}, the input goes from {low:g} to "
                    f"{high:g}",
                    replace(places(alpha.tensor), use_case=name, adapter=adapter),
                )

    def _given_strengths(self, alpha: AlphaRecord) -> Iterator[tuple[str, str, float]]:
        for use_case in self.view.manifest.use_cases:
            for slot in use_case.slots:
                if slot.rank:
                    factor = slot.scale if alpha.layout == "rank" else 1.0
                    yield use_case.name, slot.adapter, slot.alpha * factor


def _placed(places: Places, file: PackFile) -> Places:
    return lambda tensor: replace(places(tensor), use_case=file.use_case)


def _is_float(facts: GraphFacts, name: str) -> bool:
    fact = facts.tensors.get(name)
    return fact is not None and (fact.dtype is None or "float" in fact.dtype)
