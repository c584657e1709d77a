"""The graphs and records of a pack: what devices and their tools do not take of them.

graph of the target qnn, input [batch, 16]      device/open-axis
graph of the target qairt, A is an input too    device/weight-is-input
manifest with max_rank 1                        device/endless-product
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import TargetRecord
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding
from lora_quant.graph.files.context_nodes import sdk_versions
from lora_quant.graph.files.graph_facts import GraphFacts
from lora_quant.validation.catalogue import device as rules
from lora_quant.validation.device.graph import (
    engine_version,
    mixed_sdk,
    open_inputs,
    weights_as_inputs,
)
from lora_quant.validation.device.names import name_clashes
from lora_quant.validation.linked.graph_of import facts_if_readable
from lora_quant.validation.pack.view import PackView

_CONVERTED, _COMPILED, _ENGINE = "qairt", "qnn", "onnxruntime"


def check_pack_for_devices(view: PackView) -> Iterator[Finding]:
    """Findings of the graphs and records of a pack; never raises for content."""
    for target in view.manifest.targets:
        for file in view.files(target, "graph"):
            facts = facts_if_readable(view.locate(file.path))
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
