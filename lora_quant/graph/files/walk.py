"""Walking a model: its subgraphs, its tensors, the nodes that lie outside the top-level graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

# Protobuf looks up the members of an enumeration slowly, and a graph has thousands of attributes.
_GRAPH, _GRAPHS = AttributeProto.GRAPH, (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_TENSOR, _TENSORS = AttributeProto.TENSOR, AttributeProto.TENSORS


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every subgraph nested in the attributes of its nodes."""
    yield graph
    yield from _subgraphs(graph.node)


def iter_nested_nodes(proto: ModelProto) -> Iterator[tuple[NodeProto, str]]:
    """Every node in a subgraph or a model-local function, with words for where it lies."""
    for subgraph in _subgraphs(proto.graph.node):
        for node in subgraph.node:
            yield node, "a subgraph (of If, Loop or Scan)"
    for function in proto.functions:
        place = f"the model-local function {function.name!r}"
        for node in function.node:
            yield node, place
        for subgraph in _subgraphs(function.node):
            for node in subgraph.node:
                yield node, place


def iter_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model stores: initializers, and tensors in attributes."""
    for graph in iter_graphs(proto.graph):
        yield from _tensors_of(graph)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)
        for graph in _subgraphs(function.node):
            yield from _tensors_of(graph)


def _subgraphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    pending = [nodes]
    while pending:
        for node in pending.pop():
            for attribute in node.attribute:
                if attribute.type not in _GRAPHS:
                    continue
                for graph in [attribute.g] if attribute.type == _GRAPH else attribute.graphs:
                    yield graph
                    pending.append(graph.node)


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == _TENSOR:
                yield attribute.t
            elif attribute.type == _TENSORS:
                yield from attribute.tensors
