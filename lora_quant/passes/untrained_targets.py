"""Modules of the graph that a configuration targets and its checkpoint has no tensors for.

A checkpoint that lost some of its modules looks like a smaller adapter. The graph knows better:
what `target_modules` selects there should be in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_quant.adapters.adapter import Adapter
from lora_quant.errors import some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.catalog import LinearCatalog
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.records import LinearNode


def untrained_targets(
    adapter: Adapter,
    resolution: Resolution,
    catalog: LinearCatalog,
    mapping: Mapping[str, list[str]] | None,
) -> Iterator[Finding]:
    """A warning that lists the modules, unless the configuration names none or all."""
    targets = adapter.targets
    if targets.modules is None or targets.is_all_linear:
        return
    adapted = {
        resolution.points[resolution.placements[module].point].linear.product
        for module in adapter.shapes
    }
    missing = sorted(
        path
        for path, product in _linear_modules(catalog, mapping)
        if product not in adapted and targets.matches(path)
    )
    if missing:
        yield Finding(
            rule="adapter/untrained-target",
            severity=Severity.WARNING,
            message=f"adapter {adapter.name!r} targets {len(missing)} modules of the graph for "
            f"which its file has no tensors: {some(missing)}",
            where=adapter.checkpoint.config.where("target_modules"),
            hint="they stay as in the base; if they were trained, the checkpoint is incomplete",
        )


def _linear_modules(
    catalog: LinearCatalog, mapping: Mapping[str, list[str]] | None
) -> Iterator[tuple[str, str]]:
    """Module path and product of every linear node, as the mapping spells it if there is one."""
    if mapping is None:
        for product, paths in catalog.paths.items():
            if paths:
                yield paths[0], product
        return
    for path, nodes in mapping.items():
        for node in nodes:
            linear = catalog.nodes.get(node)
            if isinstance(linear, LinearNode):
                yield path, linear.product
