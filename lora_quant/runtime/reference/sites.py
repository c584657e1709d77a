"""Where the modules of a pack's adapters are: nodes of the base graph, and their output rows.

A pack with branches tells it in its manifest. A merged one has none: there the modules are resolved
anew, as the build did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.manifest import Manifest
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.attach.resolver import Resolver
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.module_requests import module_request


@dataclass(frozen=True)
class Site:
    """Output rows `[offset, offset + size)` of a node that belong to a module.

    `part` is the module's number among those of a fused projection, and `point` the name of the
    attach point, "" in a merged pack.
    """

    node: str
    offset: int
    size: int
    part: int = 0
    point: str = ""

    @property
    def rows(self) -> slice:
        """The output rows."""
        return slice(self.offset, self.offset + self.size)


Sites = Mapping[str, Mapping[str, Site]]
"""Adapter -> module, by the adapter's own name for it -> where it is."""


def find_sites(
    manifest: Manifest, adapters: Mapping[str, Adapter], base: Path, mapping: Path | None
) -> Sites:
    """The site of every module that an adapter changes.

    Raises VerificationError for a module that the pack has no place for, and AttachPointError for
    one that the base graph of a merged pack does not have.
    """
    if manifest.merged is not None:
        return _resolved(adapters, base, mapping)
    listed = {
        part.module: Site(point.node, part.offset, part.size, number, point.name)
        for point in manifest.attach_points
        for number, part in enumerate(point.modules)
    }
    names = NameTable(listed)
    return {
        adapter.name: {
            module: listed[_only(names.find(module), adapter.name, module)]
            for module, shape in adapter.shapes.items()
            if _changes(shape)
        }
        for adapter in adapters.values()
    }


def _changes(shape: ModuleShape) -> bool:
    """Whether the module is changed at all: training may have left it without any rank."""
    return shape.rank > 0 or shape.dense or bool(shape.vectors)


def _only(found: tuple[str, ...], adapter: str, module: str) -> str:
    if len(found) != 1:
        raise VerificationError(
            f"the pack has {len(found)} places for module {module!r}, expected one",
            where=Where(adapter=adapter, module=module),
            hint="build the pack again",
        )
    return found[0]


def _resolved(adapters: Mapping[str, Adapter], path: Path, mapping: Path | None) -> Sites:
    base = open_base(path)
    resolver = Resolver(
        base.catalog,
        base.index,
        graph_file=path,
        mapping=None if mapping is None else read_attach_map(mapping),
        mapping_file=mapping,
    )
    requests = [
        # Nothing is added, so that it does not matter what a branch could not have.
        module_request(shape, adapter.name, low_rank=False)
        for adapter in adapters.values()
        for shape in adapter.shapes.values()
    ]
    resolution = resolver.resolve(requests)
    sites: dict[str, dict[str, Site]] = {name: {} for name in adapters}
    for request in requests:
        placement = resolution.placements[request.module]
        point = resolution.points[placement.point]
        part = point.parts[placement.part]
        site = Site(point.linear.node or point.linear.product, part.offset, part.size)
        sites[request.adapter][request.module] = site
    return sites
