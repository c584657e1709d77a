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
        resolver = Resolver(
            base.catalog,
            base.index,
            graph_file=base.path,
            mapping=read_attach_map(mapping_file) if mapping_file else None,
            mapping_file=mapping_file,
        )
        requests = [
            ModuleRequest(s.module, s.in_features, s.out_features, s.kernel, adapter.name)
            for adapter in compilation.having("adapters").values()
            for s in adapter.shapes.values()
        ]
        resolution = resolver.resolve(requests)
        changed = resolution != compilation.resolution
        return PassResult(replace(compilation, resolution=resolution), changed)
