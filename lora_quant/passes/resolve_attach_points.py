"""Pass: find the node that computes each adapted module.

adapters' modules (+ attach point mapping)  ->  attach points in graph order, and placements
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.config.attach_map import read_attach_map
from lora_quant.graph.attach import ModuleRequest, Resolver
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ADAPTERS_OPEN, MODULES_RESOLVED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.untrained_targets import untrained_targets


@dataclass(frozen=True)
class ResolveAttachPoints:
    """Resolves every module of every used adapter; see lora_quant.graph.attach."""

    name: ClassVar[str] = "resolve-attach-points"
    requires: ClassVar[tuple[Condition, ...]] = (ADAPTERS_OPEN,)
    ensures: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises AttachPointError for a module without exactly one fitting node."""
        mapping_file = compilation.config.attach_point_onnx_mapping
        base = compilation.base
        mapping = read_attach_map(mapping_file) if mapping_file else None
        resolver = Resolver(
            base.catalog,
            base.index,
            graph_file=base.path,
            mapping=mapping,
            mapping_file=mapping_file,
        )
        adapters = compilation.having("adapters").values()
        requests = [
            ModuleRequest(s.module, s.in_features, s.out_features, s.kernel, adapter.name)
            for adapter in adapters
            for s in adapter.shapes.values()
        ]
        resolution = resolver.resolve(requests)
        if resolution == compilation.resolution:
            return PassResult(compilation, changed=False)
        findings = [
            finding
            for adapter in adapters
            for finding in untrained_targets(adapter, resolution, base.catalog, mapping)
        ]
        resolved = replace(compilation, resolution=resolution).with_findings(*findings)
        return PassResult(resolved, changed=True)
