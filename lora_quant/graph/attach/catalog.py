"""All nodes of a graph that compute W x, with their module paths: what an adapter attaches to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from lora_quant.graph.attach.embedding import is_lookup, recognise_embedding
from lora_quant.graph.attach.linear import NotLinear, is_linear, reason_to_refuse, recognise
from lora_quant.graph.attach.module_names import module_paths
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.walk import iter_nested_nodes
from lora_quant.graph.records import LinearNode


@dataclass(frozen=True, eq=False)
class NodeCatalog:
    """Nodes of one kind in graph order, keyed by their product (output tensor), which is unique.

    `paths` gives each its module paths, best first; `products` is the reverse. `nodes` finds by
    node name, or by product where a node has none or shares it. `refused` finds by module path what
    looks like an attach point and is none.
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

    def key_of(self, product: str) -> str:
        """What `nodes` finds a linear node by: its name, or its product."""
        linear = self.linears[product]
        return linear.node if self.nodes.get(linear.node) is linear else product

    def is_below(self, product: str, path: str) -> bool:
        """Whether the node bears `path` only as a level above its own module."""
        return any(other.startswith(f"{path}.") for other in self.paths[product])


@dataclass(frozen=True, eq=False)
class LinearCatalog(NodeCatalog):
    """The linear nodes (see linear.py), and apart from them the `embeddings` (Gather)."""

    embeddings: NodeCatalog


def build_catalog(proto: ModelProto, index: GraphIndex) -> LinearCatalog:
    """Recognise every linear node and embedding, and note those in subgraphs as refused."""
    linears, embeddings = _Collector(index), _Collector(index)
    for node in proto.graph.node:
        linears.add(node, recognise(node, index))
        embeddings.add(node, recognise_embedding(node, index))
    for node, place in iter_nested_nodes(proto):
        if is_linear(node) or reason_to_refuse(node):
            linears.add_nested(node, node.input[1] if len(node.input) > 1 else "", place)
        elif is_lookup(node):
            embeddings.add_nested(node, node.input[0], place)
    found = linears.catalog()
    return LinearCatalog(
        linears=found.linears,
        paths=found.paths,
        products=found.products,
        nodes=found.nodes,
        refused=found.refused,
        embeddings=embeddings.catalog(),
    )


class _Collector:
    """Builds the catalog of one kind of nodes, one node after the other."""

    def __init__(self, index: GraphIndex) -> None:
        self._index = index
        self._linears: dict[str, LinearNode] = {}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._products: dict[str, list[str]] = defaultdict(list)
        self._named: dict[str, LinearNode | NotLinear] = {}
        self._unnamed: dict[str, LinearNode | NotLinear] = {}
        self._refused: dict[str, NotLinear] = {}

    def add(self, node: NodeProto, found: LinearNode | NotLinear | None) -> None:
        if found is None:
            return
        if node.name in self._named:
            reason = "several nodes bear this name"
            self._named[node.name] = NotLinear(node.name, node.op_type, reason)
        elif node.name:
            self._named[node.name] = found
        elif node.output:
            self._unnamed[node.output[0]] = found
        paths = module_paths(node, found.weight, self._index)
        if isinstance(found, NotLinear):
            for path in paths:
                self._refused.setdefault(path, found)
            return
        self._linears[found.product] = found
        self._paths[found.product] = paths
        for path in paths:
            self._products[path].append(found.product)

    def add_nested(self, node: NodeProto, weight: str, place: str) -> None:
        nested = NotLinear(node.name, node.op_type, f"it lies inside {place}", weight)
        if node.name:
            self._named.setdefault(node.name, nested)
        for path in module_paths(node, weight, self._index):
            self._refused.setdefault(path, nested)

    def catalog(self) -> NodeCatalog:
        return NodeCatalog(
            linears=self._linears,
            paths=self._paths,
            products={path: tuple(found) for path, found in self._products.items()},
            nodes={**self._unnamed, **self._namesakes(), **self._named},
            refused=self._refused,
        )

    def _namesakes(self) -> dict[str, LinearNode | NotLinear]:
        """Nodes whose name is that of others, by product."""
        return {
            product: linear
            for product, linear in self._linears.items()
            if self._named.get(linear.node, linear) is not linear
        }


def attach_map(catalog: NodeCatalog) -> dict[str, list[str]]:
    """Module path -> node names, for every node of the catalog whose module is known.

    A node without a name of its own is listed under the name of its output. Resolving with this
    mapping gives what resolving without one gives; embeddings have a mapping of their own.
    """
    result: dict[str, list[str]] = defaultdict(list)
    for product in catalog.linears:
        name = catalog.name_of(product)
        if name is not None:
            result[name].append(catalog.key_of(product))
    return dict(result)
