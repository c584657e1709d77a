"""What other files can be held against in a graph: its names, dtypes and shapes, no values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference

from lora_quant.graph.files.element_types import type_name
from lora_quant.graph.files.linear_facts import LinearFact, linear_facts
from lora_quant.graph.files.model_file import ModelFile, load_model
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.files.weight_axes import weight_axes

_INFERRED_BYTES = 64 << 20  # inference copies the whole file twice, weights inside of it included


class TensorRole(Enum):
    """What a tensor is in its graph."""

    INPUT = "input"
    OVERRIDABLE = "input with a default"
    INITIALIZER = "initializer"
    ACTIVATION = "activation"
    OUTPUT = "output"


@dataclass(frozen=True)
class TensorFact:
    """One tensor. dtype: ONNX's name in lower case, None if it is not told.

    shape: -1 for a size that is open, None if nothing is told. Constants that Constant nodes hold
    are initializers here. axis: the axis of the output channels if a linear node reads it as its
    weight, else None.
    """

    role: TensorRole
    dtype: str | None
    shape: tuple[int, ...] | None
    axis: int | None = None

    @property
    def is_param(self) -> bool:
        """Whether quantizers file it under params."""
        return self.role in (TensorRole.INITIALIZER, TensorRole.OVERRIDABLE)


@dataclass(frozen=True)
class GraphFacts:
    """Names of one graph, subgraphs left out. nodes: node name -> operator.

    A node without a name is listed by its first output, as attach point mappings name it.
    constants: names of what Constant nodes hold. opset: of the default operators, 0 if unknown.
    """

    path: Path
    nodes: Mapping[str, str]
    tensors: Mapping[str, TensorFact]
    linears: tuple[LinearFact, ...] = ()
    constants: frozenset[str] = frozenset()
    opset: int = 0
    ir_version: int = 0


def read_graph_facts(path: Path) -> GraphFacts:
    """The facts of the graph at `path`, without its weights; linear in its nodes.

    Of an activation it is known what the graph tells, or what onnx infers of a graph file below
    64 MiB. Raises GraphError for a graph that cannot be used, InputMissingError for a missing file.
    """
    return facts_of_model(load_model(path))


def facts_of_model(model: ModelFile) -> GraphFacts:
    """The facts of a graph that is loaded."""
    graph = model.proto.graph
    tensors: dict[str, TensorFact] = {}
    for stored in graph.initializer:
        tensors[stored.name] = _stored(TensorRole.INITIALIZER, stored)
    for sparse in graph.sparse_initializer:
        dims = tuple(sparse.dims)
        tensors[sparse.values.name] = replace(
            _stored(TensorRole.INITIALIZER, sparse.values), shape=dims
        )
    for value in graph.input:
        default = tensors.get(value.name)
        if default is None:
            tensors[value.name] = _declared(TensorRole.INPUT, value)
        else:
            tensors[value.name] = replace(default, role=TensorRole.OVERRIDABLE)
    told = {value.name: value for value in _told(model.proto)}
    outputs = {value.name for value in graph.output}
    nodes: dict[str, str] = {}
    producers: dict[str, NodeProto] = {}
    for node in graph.node:
        nodes.setdefault(node.name or next(iter(node.output), ""), node.op_type)
        for name in filter(None, node.output):
            producers[name] = node
            role = TensorRole.OUTPUT if name in outputs else TensorRole.ACTIVATION
            constant = _constant(node)
            value = told.get(name)
            if constant is not None:
                tensors[name] = constant
            else:
                tensors[name] = (
                    TensorFact(role, None, None) if value is None else _declared(role, value)
                )
    tensors.update(_with_axes(graph, producers, tensors))
    stored_names = frozenset(name for name, fact in tensors.items() if fact.is_param)
    return GraphFacts(
        model.path,
        nodes,
        tensors,
        linears=linear_facts(graph, producers, stored_names),
        constants=stored_names.intersection(producers),
        opset=model.opset,
        ir_version=model.proto.ir_version,
    )


def _told(proto: ModelProto) -> Iterator[ValueInfoProto]:
    """What is known of activations, the graph's own words last."""
    if proto.ByteSize() <= _INFERRED_BYTES:
        # onnx raises several kinds for graphs that it cannot infer; what is wrong with them is for
        # other checks to say.
        with contextlib.suppress(Exception):
            yield from shape_inference.infer_shapes(proto).graph.value_info
    yield from proto.graph.value_info
    yield from proto.graph.output


def _with_axes(
    graph: GraphProto, producers: Mapping[str, NodeProto], tensors: Mapping[str, TensorFact]
) -> Iterator[tuple[str, TensorFact]]:
    counts = {
        name: len(fact.shape)
        for name, fact in tensors.items()
        if fact.is_param and fact.shape is not None
    }
    for name, axis in weight_axes(graph, producers, counts).items():
        yield name, replace(tensors[name], axis=axis)


def _stored(role: TensorRole, tensor: TensorProto) -> TensorFact:
    return TensorFact(role, type_name(tensor.data_type), tuple(tensor.dims))


def _declared(role: TensorRole, value: ValueInfoProto) -> TensorFact:
    given = value.type.tensor_type
    element = given.elem_type
    dtype = None if element == TensorProto.UNDEFINED else type_name(element)
    shape = None
    if given.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in given.shape.dim)
    return TensorFact(role, dtype, shape)


def _constant(node: NodeProto) -> TensorFact | None:
    """What a Constant node holds; None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    given = attributes(node)
    role = TensorRole.INITIALIZER
    tensor = given.get("value")
    if isinstance(tensor, TensorProto):
        return _stored(role, tensor)
    for name, dtype in (("value_float", "float"), ("value_int", "int64")):
        if name in given:
            return TensorFact(role, dtype, ())
        if f"{name}s" in given:
            return TensorFact(role, dtype, (len(given[f"{name}s"]),))
    return TensorFact(role, None, None)
