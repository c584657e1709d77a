"""All linear nodes of a graph with their module paths: what an adapter can be attached to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from lora_quant.graph.index import GraphIndex
from lora_quant.graph.linear import NotLinear, recognise
from lora_quant.graph.module_names import flat_name, module_paths, path_of_node_name
from lora_quant.graph.records import LinearNode


@dataclass(frozen=True, eq=False)
class LinearCatalog:
    """Linear nodes in graph order, keyed by their product (output tensor), which is unique.

    `paths` gives each its module paths, best first. `products` is the reverse, with the flat names
    of prepared models among the keys. `nodes` finds by node name, `refused` by module path, what
    looks like an attach point and is none.
    """

    linears: Mapping[str, LinearNode]
    paths: Mapping[str, tuple[str, ...]]
    products: Mapping[str, tuple[str, ...]]
    flat_names: frozenset[str]
    nodes: Mapping[str, LinearNode | NotLinear]
    refused: Mapping[str, NotLinear]


def build_catalog(proto: ModelProto, index: GraphIndex) -> LinearCatalog:
    """Recognise every linear node of the top-level graph."""
    linears: dict[str, LinearNode] = {}
    paths: dict[str, tuple[str, ...]] = {}
    products: dict[str, list[str]] = defaultdict(list)
    flat_names: set[str] = set()
    nodes: dict[str, LinearNode | NotLinear] = {}
    refused: dict[str, NotLinear] = {}
    for node in proto.graph.node:
        found = recognise(node, index)
        if found is None:
            continue
        if node.name:
            nodes[node.name] = found
        if isinstance(found, NotLinear):
            path = path_of_node_name(node.name)
            if path:
                refused[path] = found
            continue
        linears[found.product] = found
        paths[found.product] = module_paths(node, found, index)
        for path in paths[found.product]:
            products[path].append(found.product)
        flat = flat_name(node.name)
        if flat:
            flat_names.add(flat)
            products[flat].append(found.product)
    return LinearCatalog(
        linears=linears,
        paths=paths,
        products={path: tuple(found) for path, found in products.items()},
        flat_names=frozenset(flat_names),
        nodes=nodes,
        refused=refused,
    )


def attach_map(catalog: LinearCatalog) -> dict[str, list[str]]:
    """Module path -> node names, for every linear node that has both; what `map` writes."""
    result: dict[str, list[str]] = defaultdict(list)
    for product, linear in catalog.linears.items():
        names = catalog.paths[product]
        if names and linear.node:
            result[names[0]].append(linear.node)
    return dict(result)
