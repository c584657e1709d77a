"""What a node computes besides its inputs, as values that are equal for equal meaning.

Names inside of subgraphs and model-local functions do not matter, nor do doc strings. What a
subgraph reads from outside is told by whatever stands for that tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from lora_quant.graph.exported.comparison.stored_bytes import StoredTensor
from lora_quant.graph.files.model_file import plain_domain

# What stands for a tensor.
Token = Callable[[str], Hashable]


class AttributeKeys:
    """The keys of one graph's nodes."""

    def __init__(self, model: ModelProto, file: Path) -> None:
        """`file` is where the model was read from."""
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self._file = file
        self._known: dict[tuple[str, str], Hashable] = {}

    def operator(self, node: NodeProto) -> Hashable:
        """Domain and operator, with the body of a model-local function."""
        call = (node.domain, node.op_type)
        function = self._functions.get(call)
        if function is None:
            return plain_domain(node.domain), node.op_type
        if call not in self._known:
            self._known[call] = call  # one that calls itself is told by its name
            self._known[call] = self._function(function)
        return plain_domain(node.domain), node.op_type, self._known[call]

    def attributes(self, node: NodeProto, token: Token) -> Mapping[str, Hashable]:
        """Its attributes by name; `token` tells the tensors that subgraphs read from outside."""
        return {a.name: self._value(a, token) for a in node.attribute}

    def _value(self, attribute: AttributeProto, token: Token) -> Hashable:
        if attribute.type == AttributeProto.TENSOR:
            return self._tensor(attribute.t)
        if attribute.type == AttributeProto.TENSORS:
            return tuple(self._tensor(tensor) for tensor in attribute.tensors)
        if attribute.type == AttributeProto.GRAPH:
            return self._graph(attribute.g, token)
        if attribute.type == AttributeProto.GRAPHS:
            return tuple(self._graph(graph, token) for graph in attribute.graphs)
        plain = AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        return bytes(plain.SerializeToString(deterministic=True))

    def _tensor(self, tensor: TensorProto) -> Hashable:
        return StoredTensor(self._file, tensor).value_key(whole=True)

    def _graph(self, graph: GraphProto, outer: Token) -> Hashable:
        inside: dict[str, Hashable] = {
            tensor.name: self._tensor(tensor) for tensor in graph.initializer
        }
        for sparse in graph.sparse_initializer:
            parts = (self._tensor(sparse.values), self._tensor(sparse.indices))
            inside[sparse.values.name] = (*parts, tuple(sparse.dims))
        for number, value in enumerate(graph.input):
            inside[value.name] = ("input", number)
        nodes = self._nodes(graph.node, inside, outer)
        return nodes, tuple(_token(value.name, inside, outer) for value in graph.output)

    def _function(self, function: FunctionProto) -> Hashable:
        inside: dict[str, Hashable] = {
            name: ("input", number) for number, name in enumerate(function.input)
        }
        opsets = frozenset((o.domain, o.version) for o in function.opset_import)
        defaults = frozenset((a.name, self._value(a, str)) for a in function.attribute_proto)
        nodes = self._nodes(function.node, inside, str)
        outputs = tuple(_token(name, inside, str) for name in function.output)
        return opsets, tuple(function.attribute), defaults, nodes, outputs

    def _nodes(
        self, nodes: Iterable[NodeProto], inside: dict[str, Hashable], outer: Token
    ) -> Hashable:
        """The keys of nodes in their order; `inside` takes up what they produce."""
        keys = []
        for position, node in enumerate(nodes):
            read = tuple(_token(name, inside, outer) for name in node.input)
            attributes = self.attributes(node, lambda name: _token(name, inside, outer))
            keys.append((self.operator(node), read, frozenset(attributes.items())))
            for number, name in enumerate(node.output):
                inside[name] = ("output", position, number, bool(name))
        return tuple(keys)


def _token(name: str, inside: Mapping[str, Hashable], outer: Token) -> Hashable:
    if not name:
        return ""
    return ("inside", inside[name]) if name in inside else ("outside", outer(name))
