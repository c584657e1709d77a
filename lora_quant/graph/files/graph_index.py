"""Name maps of a graph, built once, so that no later step walks the nodes again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from lora_quant.graph.files.walk import iter_graphs


@dataclass(frozen=True, eq=False)
class GraphIndex:
    """Lookup tables of the top-level graph.

    `positions` gives the place of a tensor's producer among the nodes. `consumers` holds the
    top-level nodes that read a tensor; `captured` are the tensors that subgraphs read, `outputs`
    the graph's own. `names` holds every tensor and node name of the graph and its subgraphs;
    model-local functions have names of their own.
    """

    initializers: dict[str, TensorProto]
    producers: dict[str, NodeProto]
    positions: dict[str, int]
    consumers: dict[str, list[NodeProto]]
    captured: frozenset[str]
    outputs: frozenset[str]
    values: dict[str, ValueInfoProto]
    names: frozenset[str]

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """The one top-level node that reads `tensor`, if nothing else does."""
        users = self.consumers.get(tensor, [])
        if len(users) != 1 or tensor in self.captured or tensor in self.outputs:
            return None
        return users[0]

    def is_shared(self, tensor: str) -> bool:
        """Whether more than one node reads `tensor`."""
        return len(self.consumers.get(tensor, [])) > 1 or tensor in self.captured

    def constant(self, tensor: str) -> TensorProto | None:
        """The initializer, or value of the Constant node, behind a tensor name."""
        if tensor in self.initializers:
            return self.initializers[tensor]
        node = self.producers.get(tensor)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
                    value: TensorProto = attribute.t
                    return value
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
        for tensor in node.output:
            producers[tensor] = node
            positions[tensor] = position
        names.update(node.output)
        for tensor in set(node.input):
            consumers[tensor].append(node)
    captured: set[str] = set()
    for subgraph in iter_graphs(graph):
        names.update(tensor.name for tensor in subgraph.initializer)
        names.update(sparse.values.name for sparse in subgraph.sparse_initializer)
        names.update(v.name for v in (*subgraph.input, *subgraph.output, *subgraph.value_info))
        if subgraph is not graph:
            captured.update(v.name for v in subgraph.output)
            for node in subgraph.node:
                captured.update(node.input)
                names.update((node.name, *node.input, *node.output))
    values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    return GraphIndex(
        initializers={tensor.name: tensor for tensor in graph.initializer},
        producers=producers,
        positions=positions,
        consumers=dict(consumers),
        captured=frozenset(captured),
        outputs=frozenset(v.name for v in graph.output),
        values=values,
        names=frozenset(names - {""}),
    )
