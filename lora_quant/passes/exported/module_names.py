"""The module of an attach point that a use case's graph shows.

attach point mapping           the module that lists the base's node
the base's own names           as for adapters with weights
the exported graph's names     without the levels of a wrapper (`base_layer`, `lora_A`)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lora_quant.errors import AttachPointError, GraphError, Where, some
from lora_quant.graph.attach.catalog import LinearCatalog, NodeCatalog, attach_map
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.records import Correspondence, ExportedGraph, FoundPoint
from lora_quant.graph.records import Form

_WRAPPED = re.compile(r"\.(?:base_layer|lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\..*)?$")
_WRAPPER = "base_model.model."


class ModuleNames:
    """Names the nodes of one base; what one graph told of a node holds for all."""

    def __init__(
        self, base: BaseGraph, mapping: Mapping[str, list[str]] | None, mapping_file: Path | None
    ) -> None:
        """`mapping`: module path -> node names."""
        self._base = base
        self._mapping = mapping
        self._mapping_file = mapping_file
        self._keys: dict[str, list[str]] = defaultdict(list)
        for module, nodes in (mapping or {}).items():
            for node in nodes:
                self._keys[node].append(module)
        self._modules: dict[str, str] = {}
        self._products: dict[str, str] = {}

    @property
    def nodes(self) -> dict[str, list[str]]:
        """Module -> the base's node, for all that were named."""
        return {
            module: [self._catalog(product).key_of(product)]
            for module, product in self._products.items()
        }

    def module_of(
        self, exported: ExportedGraph, correspondence: Correspondence, point: FoundPoint
    ) -> str:
        """Raises AttachPointError for a node without a module, and for two nodes of one.

        GraphError for a branch that no output needs: nothing of the base was held against it.
        """
        product = correspondence.tensors.get(point.linear.product)
        if product is None:
            node = point.linear.node or point.linear.product
            raise GraphError(
                f"{node!r} has a branch, and no output of the graph needs what it gives",
                where=Where(file=exported.graph.path, node=node),
                hint="export base and use cases without unused nodes, or with their outputs",
            )
        module = self._modules.get(product)
        if module is None:
            module = self._named(product) or _own(exported, point)
            if module is None:
                raise self._nameless(exported, point, product)
            other = self._products.setdefault(module, product)
            if other != product:
                raise AttachPointError(
                    f"two nodes are called {module!r}: {self._label(other)} and "
                    f"{self._label(product)}",
                    where=Where(file=self._base.path, module=module),
                    hint="name each module's node in `attach_point_onnx_mapping`",
                )
            self._modules[product] = module
        return module

    def _named(self, product: str) -> str | None:
        catalog = self._catalog(product)
        keys = dict.fromkeys(self._keys.get(catalog.key_of(product), ()))
        own = catalog.name_of(product)
        if own in keys or not keys:
            return own
        if len(keys) > 1:
            raise AttachPointError(
                f"{self._label(product)} is listed for {len(keys)} modules: {some(tuple(keys))}",
                where=Where(file=self._mapping_file, node=catalog.key_of(product)),
                hint="a branch of an exported graph is that of one module: list the node once",
            )
        return next(iter(keys))

    def _catalog(self, product: str) -> NodeCatalog:
        catalog: LinearCatalog = self._base.catalog
        return catalog if product in catalog.linears else catalog.embeddings

    def _label(self, product: str) -> str:
        return f"node {self._catalog(product).key_of(product)!r}"

    def _nameless(
        self, exported: ExportedGraph, point: FoundPoint, product: str
    ) -> AttachPointError:
        return AttachPointError(
            f"{self._label(product)} has a branch in the graph of a use case, and no name of it "
            "tells its module",
            where=Where(file=exported.graph.path, node=point.linear.node or point.linear.product),
            hint="name its module in `attach_point_onnx_mapping`, or give the float graph of a "
            "quantized base with --map-from",
        )


def completed(
    mapping: Mapping[str, list[str]] | None,
    modules: Mapping[str, list[str]],
    catalog: LinearCatalog,
) -> Mapping[str, list[str]] | None:
    """The mapping with what only the graphs of use cases told added to it.

    `modules`: module -> nodes, as these graphs tell it. Without a mapping and without need for one
    there is none; else what is added to is what the base tells.
    """
    if mapping is not None:
        told = set(mapping)
    else:
        kinds: tuple[NodeCatalog, ...] = (catalog, catalog.embeddings)
        told = {p for kind in kinds for p, found in kind.products.items() if len(found) == 1}
    extra = {module: nodes for module, nodes in modules.items() if module not in told}
    if not extra:
        return mapping
    known = mapping or {**attach_map(catalog), **attach_map(catalog.embeddings)}
    return {**known, **extra}


def _own(exported: ExportedGraph, point: FoundPoint) -> str | None:
    """What the exported graph calls the node, or the A of its branch."""
    catalog: LinearCatalog = exported.graph.catalog
    kind: NodeCatalog = catalog.embeddings if point.linear.form is Form.EMBEDDING else catalog
    name = kind.name_of(point.linear.product) if point.linear.product in kind.paths else None
    if name is not None:
        return unwrapped(name)
    for branch in point.branches:
        wrapped = kind.name_of(branch.a.product) if branch.a.product in kind.paths else None
        if wrapped is not None and _WRAPPED.search(wrapped):
            return unwrapped(wrapped)
    return None


def unwrapped(name: str) -> str:
    """The path of a module without the levels that PEFT's wrapper adds."""
    return _WRAPPED.sub("", name).removeprefix(_WRAPPER)
