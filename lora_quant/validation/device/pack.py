"""What devices do not take of a whole pack, and its encodings against its graph.

`check_pack_for_devices` looks at graphs and records; `PackEncodings` at one file of encodings after
the other, as they are read anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import AlphaRecord, PackFile, TargetRecord
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding
from lora_quant.graph.files.context_nodes import sdk_versions
from lora_quant.graph.files.graph_facts import GraphFacts
from lora_quant.validation.catalogue import device as rules
from lora_quant.validation.catalogue.encodings_of_graph import UNCOVERED
from lora_quant.validation.device.encodings import encodings_for_devices, meetings_for_devices
from lora_quant.validation.device.graph import (
    engine_version,
    mixed_sdk,
    open_inputs,
    weights_as_inputs,
)
from lora_quant.validation.device.names import name_clashes
from lora_quant.validation.device.use_cases import StructuresOfUseCases
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.linked.encodings import encodings_against_graph
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.pack.view import PackView
from lora_quant.validation.rule import Level

_CONVERTED, _COMPILED, _ENGINE = "qairt", "qnn", "onnxruntime"
_WEIGHT_ROLES = ("a_weight", "b_weight")


def check_pack_for_devices(view: PackView) -> Iterator[Finding]:
    """Findings of the graphs and records of a pack; never raises for content."""
    for target in view.manifest.targets:
        for file in view.files(target, "graph"):
            facts = _facts(view.locate(file.path))
            if facts is not None:
                yield from _graph(view, target, facts, view.show(file.path))
        for file in view.files(target, "context"):
            try:
                versions = sdk_versions(view.locate(file.path))
            except LoraQuantError:
                continue
            yield from mixed_sdk(versions, view.show(file.path))
        yield from _products(view, target)


def _graph(
    view: PackView, target: TargetRecord, facts: GraphFacts, shown: Path
) -> Iterator[Finding]:
    if target.name == _CONVERTED:
        names = [tensor.name for tensor in view.manifest.tensors]
        yield from weights_as_inputs(facts, names, shown)
        yield from name_clashes(facts.tensors, shown)
        return
    yield from engine_version(facts, shown)
    if target.name == _COMPILED:
        for name, shape in open_inputs(facts).items():
            told = "no shape" if shape is None else f"the shape {_shown(shape)}"
            yield rules.OPEN_AXIS.finding(f"the input has {told}", Where(file=shown, tensor=name))


def _shown(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def _products(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """A graph that was given computes its strengths in its own way."""
    manifest = view.manifest
    alpha = manifest.alpha_of(target)
    quantized = target.name == _COMPILED or any(True for _ in view.files(target, "base-encodings"))
    if alpha is None or not quantized or manifest.given_graph or target.name == _ENGINE:
        return
    if alpha.layout == "slot" and math.prod(alpha.shape) == 1:
        yield rules.ENDLESS_PRODUCT.finding(
            f"the input {alpha.tensor!r} has one slot",
            replace(_in_manifest(view, "alpha"), tensor=alpha.tensor),
        )
    if manifest.max_rank == 1:
        where = _in_manifest(view, "max_rank")
        yield rules.ENDLESS_PRODUCT.finding("the largest rank is 1", where)


def _in_manifest(view: PackView, key: str) -> Where:
    return Where(file=view.show(MANIFEST_FILE)) if view.inside is None else view.inside((key,))


def _facts(path: Path) -> GraphFacts | None:
    try:
        return facts_of(path)
    except LoraQuantError:
        return None


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
        return None if graph is None else _facts(self.view.locate(graph.path))

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
                yield rules.STRENGTH_CLIPS.finding(
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
