"""Use cases of a final graph that have their weights from a graph: run against that graph itself.

the pack's graph with the weights file of the use case   =   the use case's own graph, bit for bit

Both are run in one form, with LoRA weights as inputs that have defaults, so that an engine computes
both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import InputRecord, UseCaseRecord
from lora_quant.engines.onnxruntime import Array
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.graph.files.model_file import load_model
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.compiled import CompiledGraph
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.verification import SameBits, TargetVerification

_TARGET = "qairt"


@dataclass(frozen=True, eq=False)
class OwnGraphs:
    """The graphs of use cases that the manifest of a final graph's pack tells, by use case.

    `base` is where the given graph is now.
    """

    pack: Pack
    records: Mapping[str, InputRecord]
    base: Path

    def others(self) -> Pack:
        """The pack with the use cases alone whose adapters were placed."""
        manifest = self.pack.manifest
        use_cases = tuple(u for u in manifest.use_cases if u.name not in self.records)
        used = {slot.adapter for use_case in use_cases for slot in use_case.slots}
        adapters = tuple(a for a in manifest.adapters if a.name in used)
        kept = manifest.model_copy(update={"use_cases": use_cases, "adapters": adapters})
        return replace(self.pack, manifest=kept)

    def check(self, feeds: Mapping[str, Array]) -> tuple[tuple[SameBits, ...], tuple[str, ...]]:
        """What was compared, and the use cases whose adapters change no output for these inputs.

        Raises VerificationError if a graph cannot be run, or is not the one of the build.
        """
        if not self.records:
            return (), ()
        manifest = self.pack.manifest
        proto, path = self.pack.graph(_TARGET)
        compiled = CompiledGraph(proto, path, manifest)
        off = zero_weights(manifest)
        same, without_effect = [], []
        for use_case in manifest.use_cases:
            if use_case.name not in self.records:
                continue
            weights = self.pack.file(_TARGET, "weights", use_case.name)
            got = compiled.run(feeds, use_case, weights)
            own = self._own(use_case).run(feeds, use_case, None)
            told = f"use case {use_case.name!r}: the weights file against the use case's own graph"
            same.append(SameBits(told, equal(got, own)))
            if use_case.slots and equal(got, compiled.run({**feeds, **off}, None, None)):
                without_effect.append(use_case.name)
        return tuple(same), tuple(without_effect)

    def _own(self, use_case: UseCaseRecord) -> CompiledGraph:
        record = self.records[use_case.name]
        path = self.base
        if record.sha256 != self.pack.manifest.base.graph.sha256:
            path = self.pack.use_case_graph(record)
        proto = load_model(path).proto
        return CompiledGraph(proto, path, self.pack.manifest)


def own_graphs(pack: Pack, base: Path) -> OwnGraphs | None:
    """Those of a pack with a final graph; None of any other."""
    manifest = pack.manifest
    if not manifest.given_graph:
        return None
    records = {r.name: r for r in manifest.inputs if r.role == "graph" and r.name is not None}
    return OwnGraphs(pack, records, base)


def with_same_bits(
    results: tuple[TargetVerification, ...], same: tuple[SameBits, ...]
) -> tuple[TargetVerification, ...]:
    """The results with these comparisons in that of the target they are of."""
    return tuple(
        replace(one, same=(*one.same, *same)) if one.target == _TARGET else one for one in results
    )


def switched_off(proto: ModelProto, manifest: Manifest) -> ModelProto:
    """A copy of a final graph with zeros for LoRA weights: what its adapters are added to."""
    off = ModelProto()
    off.CopyFrom(proto)
    zeros = zero_weights(manifest)
    for tensor in off.graph.initializer:
        if tensor.name in zeros:
            tensor.CopyFrom(numpy_helper.from_array(zeros[tensor.name], tensor.name))
    return off


def zero_weights(manifest: Manifest) -> dict[str, Array]:
    """Zeros for every LoRA weight, by name."""
    return {t.name: np.zeros(t.shape, DTYPE_OF[t.dtype]) for t in manifest.tensors}
