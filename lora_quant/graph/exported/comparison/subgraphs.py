"""What the subgraphs of a node (of If, Loop and Scan) read from the graph around them."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs in the attributes of one node, those inside of them left out."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def captured(node: NodeProto) -> list[str]:
    """The tensors that its subgraphs take from outside, each once, in the order of their use."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        found.update(dict.fromkeys(_free(graph)))
    return list(found)


def _free(graph: GraphProto) -> list[str]:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(sparse.values.name for sparse in graph.sparse_initializer)
    known.update(name for node in graph.node for name in node.output)
    used = [name for node in graph.node for name in (*node.input, *captured(node))]
    used += [value.name for value in graph.output]
    return [name for name in used if name and name not in known]
