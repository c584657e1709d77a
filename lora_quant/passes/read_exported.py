"""Pass: take use cases that come as graphs of their own apart, into adapters and base.

graph of a use case  ->  its branches  ->  ranks of adapters  ->  a checkpoint per adapter
       `- without them, the same graph as the base

A configuration in which all use cases name the base graph has nothing to take apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.config.use_case_graphs import with_own_graphs
from lora_quant.errors import GraphError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph
from lora_quant.passes.adapter_sources import AdapterSources, read_sources
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.exported.descriptions import (
    DeclaredDescribed,
    Described,
    PeftDescribed,
)
from lora_quant.passes.exported.factors import WeightsDescribed
from lora_quant.passes.exported.module_names import ModuleNames
from lora_quant.passes.exported.reader import ExportedReader
from lora_quant.passes.module_map import module_map


@dataclass(frozen=True)
class ReadExported:
    """One graph of a use case is open at a time."""

    name: ClassVar[str] = "read-exported"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        """Raises GraphError for a graph that differs from the base, and what is not decided."""
        own = with_own_graphs(compilation.config, compilation.base.path)
        if compilation.exported is not None or not compilation.options.create_lora_graph:
            return PassResult(compilation, changed=False)
        if not own:
            found = _branches_in_base(compilation)
            return PassResult(compilation.with_findings(*found), changed=bool(found))
        described = _described(compilation, own)
        told = module_map(compilation)
        names = ModuleNames(compilation.base, told.mapping, told.file)
        on_base = recognise_branches(compilation.base)
        if on_base.points:
            raise _holds_branches(on_base)
        reader = ExportedReader(compilation.base, described, names, on_base.near)
        exported, findings = reader.read_all(own, compilation.progress)
        result = replace(compilation, modules=told, exported=exported)
        return PassResult(result.with_findings(*findings), changed=True)


def _branches_in_base(compilation: Compilation) -> tuple[Finding, ...]:
    """A note that a base has branches of its own; refused if they are all that adapters have."""
    found = recognise_branches(compilation.base)
    if not found.points:
        return ()
    unused = compilation.config.unused_adapters()
    for entry in compilation.config.adapter:
        if entry.name not in unused:
            sources = read_sources(entry, compilation.config_file)
            if sources.checkpoint is None:
                raise _holds_branches(found)
    error = _holds_branches(found)
    return (
        Finding(
            rule="exported/base-with-branches",
            severity=Severity.WARNING,
            message=f"{error.message}; those of the adapters are added to them",
            where=error.where,
            hint=error.hint,
        ),
    )


def _holds_branches(base: ExportedGraph) -> GraphError:
    """Branches in the base are a part of it, and act in every use case."""
    node = base.points[0].linear.node or base.points[0].linear.product
    count = len(base.points)
    at = f"at {count} nodes, the first {node!r}" if count > 1 else f"at node {node!r}"
    return GraphError(
        f"the base graph holds branches already, {at}",
        where=Where(file=base.graph.path, node=node),
        hint="name a base without branches; if the graph is final as it is, build with "
        "--no-create-lora-graph",
    )


def _described(compilation: Compilation, own: Sequence[UseCaseInputConfig]) -> dict[str, Described]:
    """What is known of every adapter in these use cases without their graphs."""
    wanted = {name for use_case in own for name in use_case.adapter_names}
    rules = plugins.Instances(plugins.LOWERING_RULES)
    found: dict[str, Described] = {}
    for entry in compilation.config.adapter:
        if entry.name not in wanted:
            continue
        sources = read_sources(entry, compilation.config_file)
        if sources.checkpoint is not None:
            adapter = load_adapter(entry.name, sources.checkpoint, rules, task=entry.task_id)
            found[entry.name] = WeightsDescribed(adapter)
        else:
            found[entry.name] = _without_weights(sources, compilation)
    return found


def _without_weights(sources: AdapterSources, compilation: Compilation) -> Described:
    if sources.config is not None:
        return PeftDescribed.read(sources.name, sources.config)
    place = compilation.config_file or compilation.base.path
    return DeclaredDescribed(sources.name, sources.declared, place)
