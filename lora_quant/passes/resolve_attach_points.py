"""Pass: find what each adapter adapts in the graph.

modules (+ attach point mapping)  ->  attach points in graph order, and placements
parameters that are replaced      ->  initializers
soft prompts                      ->  the inputs that take them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.adapters.lowered import ModuleShape
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.options import BuildOptions
from lora_quant.graph.attach import ModuleRequest, Resolver
from lora_quant.graph.records import Gate, Vector
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ADAPTERS_OPEN, MODULES_RESOLVED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.prompt_inputs import find_prompt_inputs
from lora_quant.passes.replacements import find_replacements
from lora_quant.passes.untrained_targets import untrained_targets


@dataclass(frozen=True)
class ResolveAttachPoints:
    """Resolves every module of every used adapter; see lora_quant.graph.attach."""

    name: ClassVar[str] = "resolve-attach-points"
    requires: ClassVar[tuple[Condition, ...]] = (ADAPTERS_OPEN,)
    ensures: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises AttachPointError for a module without exactly one fitting node.

        GraphError for a parameter or a prompt that the graph has no place for.
        """
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
            _request(shape, adapter.name, compilation.options)
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
            compilation, resolution=resolution, replacements=replacements, prompts=prompts
        )
        return PassResult(resolved.with_findings(*findings, *noticed), changed=True)


def _request(shape: ModuleShape, adapter: str, options: BuildOptions) -> ModuleRequest:
    gates = {Gate.INPUT} if shape.gated else set()
    if shape.experts:
        gates.add(Gate.ROUTER)
    return ModuleRequest(
        shape.module,
        shape.in_features,
        shape.out_features,
        shape.kernel,
        adapter,
        is_embedding=shape.is_embedding,
        groups=shape.groups,
        low_rank=options.merge is None and (shape.rank > 0 or shape.dense),
        vectors=frozenset(map(Vector, shape.vectors)),
        gates=frozenset(gates),
    )
