"""All linear nodes of a graph with their module paths: what an adapter can be attached to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from lora_quant.graph.index import GraphIndex
from lora_quant.graph.linear import NotLinear, is_linear, reason_to_refuse, recognise
from lora_quant.graph.module_names import module_paths
from lora_quant.graph.records import LinearNode
from lora_quant.graph.walk import iter_nested_nodes


@dataclass(frozen=True, eq=False)
class LinearCatalog:
    """Linear nodes in graph order, keyed by their product (output tensor), which is unique.

    `paths` gives each its module paths, best first; `products` is the reverse. `nodes` finds by
    node name, or by product where a node has none. `refused` finds by module path what looks like
    an attach point and is none.
    """

    linears: Mapping[str, LinearNode]
    paths: Mapping[str, tuple[str, ...]]
    products: Mapping[str, tuple[str, ...]]
    nodes: Mapping[str, LinearNode | NotLinear]
    refused: Mapping[str, NotLinear]

    def name_of(self, product: str) -> str | None:
        """The best module path that no other node has, else the best, None without any.

        A node that is named after a level above its module shares that path with others.
        """
        paths = self.paths[product]
        own = (path for path in paths if len(self.products[path]) == 1)
        return next(own, paths[0] if paths else None)


def build_catalog(proto: ModelProto, index: GraphIndex) -> LinearCatalog:
    """Recognise every linear node, and note those in subgraphs and functions as refused."""
    linears: dict[str, LinearNode] = {}
    paths: dict[str, tuple[str, ...]] = {}
    products: dict[str, list[str]] = defaultdict(list)
    named: dict[str, LinearNode | NotLinear] = {}
    unnamed: dict[str, LinearNode | NotLinear] = {}
    refused: dict[str, NotLinear] = {}
    for node in proto.graph.node:
        found = recognise(node, index)
        if found is None:
            continue
        if node.name in named:
            named[node.name] = NotLinear(node.name, node.op_type, "several nodes bear this name")
        elif node.name:
            named[node.name] = found
        elif node.output:
            unnamed[node.output[0]] = found
        if isinstance(found, NotLinear):
            for path in module_paths(node, found.weight, index):
                refused.setdefault(path, found)
            continue
        linears[found.product] = found
        paths[found.product] = module_paths(node, found.weight, index)
        for path in paths[found.product]:
            products[path].append(found.product)
    for node, place in iter_nested_nodes(proto):
        if is_linear(node) or reason_to_refuse(node):
            weight = node.input[1] if len(node.input) > 1 else ""
            nested = NotLinear(node.name, node.op_type, f"it lies inside {place}", weight)
            if node.name:
                named.setdefault(node.name, nested)
            for path in module_paths(node, weight, index):
                refused.setdefault(path, nested)
    return LinearCatalog(
        linears=linears,
        paths=paths,
        products={path: tuple(found) for path, found in products.items()},
        nodes={**unnamed, **named},
        refused=refused,
    )


def attach_map(catalog: LinearCatalog) -> dict[str, list[str]]:
    """Module path -> node names, for every linear node whose module is known.

    A node without a name is listed under the name of its output. Resolving with this mapping gives
    what resolving without one gives.
    """
    result: dict[str, list[str]] = defaultdict(list)
    for product, linear in catalog.linears.items():
        name = catalog.name_of(product)
        if name is not None:
            result[name].append(linear.node or product)
    return dict(result)
