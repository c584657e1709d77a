"""Pass: find what each adapter adapts in the graph.

modules (+ module map)            ->  attach points in graph order, and placements
parameters that are replaced      ->  initializers
soft prompts                      ->  the inputs that take them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.adapters.lowered import ModuleShape
from lora_quant.graph.attach.resolver import Resolver
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ADAPTERS_OPEN, MODULES_RESOLVED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.exported.module_names import completed
from lora_quant.passes.module_map import module_map
from lora_quant.passes.module_requests import module_request
from lora_quant.passes.prompt_inputs import find_prompt_inputs
from lora_quant.passes.replacements import find_replacements
from lora_quant.passes.untrained_targets import untrained_targets


@dataclass(frozen=True)
class ResolveAttachPoints:
    """Resolves every module of every used adapter; see lora_quant.graph.attach.resolver."""

    name: ClassVar[str] = "resolve-attach-points"
    requires: ClassVar[tuple[Condition, ...]] = (ADAPTERS_OPEN,)
    ensures: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises AttachPointError for a module without exactly one fitting node.

        GraphError for a parameter or a prompt that the graph has no place for, and for a float
        graph that is not the base's; ConfigError if it is given beside a mapping.
        """
        base = compilation.base
        told = module_map(compilation)
        exported = compilation.exported
        modules = {} if exported is None else exported.modules
        mapping = completed(told.mapping, modules, base.catalog)
        resolver = Resolver(
            base.catalog,
            base.index,
            graph_file=base.path,
            mapping=mapping,
            mapping_file=told.file,
            mapping_source=told.source,
        )
        adapters = compilation.having("adapters").values()
        branches = compilation.options.merge is None
        requests = [
            module_request(shape, adapter.name, low_rank=branches and _has_low_rank(shape))
            for adapter in adapters
            for shape in adapter.shapes.values()
        ]
        resolution = resolver.resolve(requests)
        if resolution == compilation.resolution:
            return PassResult(compilation, changed=False)
        findings = [
            finding
            for adapter in adapters
            for finding in untrained_targets(adapter, resolution, base.catalog, mapping)
        ]
        replacements, noticed = find_replacements(base, adapters)
        prompts = {
            adapter.name: find_prompt_inputs(base, adapter)
            for adapter in adapters
            if adapter.description.prompt is not None
        }
        resolved = replace(
            compilation,
            modules=told,
            resolution=resolution,
            replacements=replacements,
            prompts=prompts,
        )
        return PassResult(resolved.with_findings(*told.findings, *findings, *noticed), changed=True)


def _has_low_rank(shape: ModuleShape) -> bool:
    """A dense update will be approximated: what cannot be is refused before."""
    return shape.rank > 0 or shape.dense
