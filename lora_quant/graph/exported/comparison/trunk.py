"""A graph as it is compared: without its branches, and without what changes nothing.

    h --- Add ---> y --- Cast to its own type ---> c ---> Relu           h ---> Relu
          |                                                 =
    x --- A --- B

Identity, Cast to the type that a tensor already has, and Cast to a wider type and back (around a
branch in float32 of a graph in half precision) are passed over, constants are values wherever they
are stored, and what no output needs is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.comparison.stored_bytes import StoredTensor
from lora_quant.graph.exported.comparison.subgraphs import captured
from lora_quant.graph.exported.comparison.value_types import element_types
from lora_quant.graph.exported.small_constants import stored_constant
from lora_quant.graph.files.graph_index import GraphIndex

# Casts that keep every value, so that the one back to the first type undoes them.
_WIDENED = frozenset(
    {
        (TensorProto.FLOAT16, TensorProto.FLOAT),
        (TensorProto.FLOAT16, TensorProto.DOUBLE),
        (TensorProto.BFLOAT16, TensorProto.FLOAT),
        (TensorProto.BFLOAT16, TensorProto.DOUBLE),
        (TensorProto.FLOAT, TensorProto.DOUBLE),
    }
)


@dataclass(frozen=True, eq=False)
class TrunkNode:
    """A node that an output needs.

    `inputs` are the roots of what it reads ("" for an input that is left out), `captured` the
    roots of what its subgraphs read from outside.
    """

    proto: NodeProto
    inputs: tuple[str, ...]
    captured: Mapping[str, str]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Its outputs, without those left out at the end."""
        names = list(self.proto.output)
        while names and not names[-1]:
            names.pop()
        return tuple(names)

    @property
    def reads(self) -> tuple[str, ...]:
        """Every root that it or its subgraphs read."""
        return tuple(name for name in (*self.inputs, *self.captured.values()) if name)

    @property
    def label(self) -> str:
        """Its name, or else its first output."""
        return str(self.proto.name) or self.first

    @property
    def first(self) -> str:
        """The first output that it has."""
        return next(str(name) for name in self.proto.output if name)


@dataclass(frozen=True, eq=False)
class Trunk:
    """What is left of a graph.

    `roots`: every tensor that an output needs, or that passes one on -> the tensor that it is the
    same as; `behind`: those whose way there leads through a sum -> that sum, the sums among them.
    `constants`: root -> its stored values. `nodes` in graph order. `inputs` are the graph's, as
    roots, those with stored values left out; `outputs` are names of tensors.
    """

    graph: BaseGraph
    roots: Mapping[str, str]
    behind: Mapping[str, str]
    constants: Mapping[str, StoredTensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[TrunkNode, ...]

    def root(self, name: str) -> str:
        """The tensor that `name` is the same as."""
        return self.roots.get(name, name)


def trunk_of(graph: BaseGraph, sums: Mapping[str, str]) -> Trunk:
    """The trunk of a graph; `sums`: y -> h of each attach point.

    Raises GraphError for stored values that cannot be compared (sparse ones).
    """
    proto = graph.model.proto.graph
    roots, behind = _roots(graph, sums)
    stored = graph.index.initializers
    needed = _needed(graph, roots)
    nodes: list[TrunkNode] = []
    constants: dict[str, StoredTensor] = {}
    for node in proto.node:
        if needed.isdisjoint(node.output) or node.output[0] in roots:
            continue
        value = _constant(node, graph.index)
        if value is not None:
            constants[node.output[0]] = StoredTensor(graph.path, value)
            continue
        names = [roots.get(name, name) for name in node.input]
        while names and not names[-1]:
            names.pop()
        inside = {name: roots.get(name, name) for name in captured(node)}
        nodes.append(TrunkNode(node, tuple(names), inside))
    constants.update((n, StoredTensor(graph.path, t)) for n, t in stored.items() if n in needed)
    for sparse in proto.sparse_initializer:
        if sparse.values.name in needed:
            raise GraphError(
                "the values are stored as a sparse initializer, which is not compared",
                where=Where(file=graph.path, tensor=sparse.values.name),
                hint="store it as an ordinary initializer",
            )
    return Trunk(
        graph=graph,
        roots=roots,
        behind=behind,
        constants=constants,
        inputs=tuple(v.name for v in proto.input if v.name not in stored),
        outputs=tuple(v.name for v in proto.output),
        nodes=tuple(nodes),
    )


def _roots(graph: BaseGraph, sums: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Tensors that are the same as another one, and the sums that some are so because of."""
    types = element_types(graph)
    roots: dict[str, str] = {}
    behind: dict[str, str] = {}
    # In graph order, so that what a tensor is the same as has its root already.
    for node in graph.model.proto.graph.node:
        for name in node.output:
            source = sums.get(name)
            if source is not None:
                behind[name] = name
            elif node.domain in ("", "ai.onnx"):
                source = _same_as(node, graph, types, roots)
                if source is not None and node.input[0] in behind:
                    behind[name] = behind[node.input[0]]
            if source is not None:
                roots[name] = roots.get(source, source)
    return roots, behind


def _same_as(
    node: NodeProto, graph: BaseGraph, types: Mapping[str, int], roots: Mapping[str, str]
) -> str | None:
    """The tensor whose values a node passes on in their type, None if it changes them."""
    if node.op_type == "Identity":
        return str(node.input[0])
    if node.op_type != "Cast":
        return None
    source, kind = node.input[0], types.get(node.output[0], TensorProto.UNDEFINED)
    if types.get(source) == kind:
        return str(source)
    wide = roots.get(source, source)
    inner = graph.index.producers.get(wide)
    if inner is None or inner.op_type != "Cast" or types.get(inner.input[0]) != kind:
        return None
    return str(inner.input[0]) if (kind, types.get(wide)) in _WIDENED else None


def _needed(graph: BaseGraph, roots: Mapping[str, str]) -> set[str]:
    """Roots that an output of the graph needs."""
    found: set[str] = set()
    pending = [roots.get(v.name, v.name) for v in graph.model.proto.graph.output]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        node = graph.index.producers.get(name)
        if node is not None:
            read = (*node.input, *captured(node))
            pending += [roots.get(source, source) for source in read if source]
    return found


def _constant(node: NodeProto, index: GraphIndex) -> TensorProto | None:
    """The value of a Constant that holds numbers."""
    is_constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
    return stored_constant(node.output[0], index) if is_constant else None
