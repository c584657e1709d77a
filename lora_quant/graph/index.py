"""Name maps of a graph, built once, so that no later step walks the nodes again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from lora_quant.graph.model_file import iter_graphs


@dataclass(frozen=True, eq=False)
class GraphIndex:
    """Lookup tables of the top-level graph.

    `consumers` counts every use of a tensor, also from inside subgraphs and as a graph output;
    `names` holds every tensor and node name anywhere in the model.
    """

    initializers: dict[str, TensorProto]
    producers: dict[str, NodeProto]
    positions: dict[str, int]
    consumers: dict[str, list[NodeProto]]
    captured: frozenset[str]
    outputs: frozenset[str]
    values: dict[str, ValueInfoProto]
    names: frozenset[str]
    nested_nodes: dict[str, str]

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """The one top-level node that reads `tensor`, if nothing else does."""
        users = self.consumers.get(tensor, [])
        if len(users) != 1 or tensor in self.captured or tensor in self.outputs:
            return None
        return users[0]

    def constant(self, tensor: str) -> TensorProto | None:
        """The initializer, or value of the Constant node, behind a tensor name."""
        if tensor in self.initializers:
            return self.initializers[tensor]
        node = self.producers.get(tensor)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
                    return attribute.t
        return None


def build_index(proto: ModelProto) -> GraphIndex:
    """Index a model in one walk over its nodes."""
    graph = proto.graph
    producers: dict[str, NodeProto] = {}
    positions: dict[str, int] = {}
    consumers: dict[str, list[NodeProto]] = defaultdict(list)
    names: set[str] = set()
    for position, node in enumerate(graph.node):
        names.add(node.name)
        names.update(node.input)
        for tensor in node.output:
            producers[tensor] = node
            positions[tensor] = position
        names.update(node.output)
        for tensor in set(node.input):
            consumers[tensor].append(node)
    captured: set[str] = set()
    nested_nodes: dict[str, str] = {}
    for subgraph in iter_graphs(graph):
        names.update(t.name for t in subgraph.initializer)
        names.update(v.name for v in subgraph.input)
        names.update(v.name for v in subgraph.output)
        if subgraph is graph:
            continue
        for node in subgraph.node:
            captured.update(node.input)
            names.add(node.name)
            names.update(node.input)
            names.update(node.output)
            nested_nodes[node.name] = node.op_type
        captured.update(v.name for v in subgraph.output)
    values = {v.name: v for v in graph.value_info}
    values.update((v.name, v) for v in graph.input)
    values.update((v.name, v) for v in graph.output)
    names.update(values)
    return GraphIndex(
        initializers={t.name: t for t in graph.initializer},
        producers=producers,
        positions=positions,
        consumers=dict(consumers),
        captured=frozenset(captured),
        outputs=frozenset(v.name for v in graph.output),
        values=values,
        names=frozenset(names - {""}),
        nested_nodes=nested_nodes,
    )
