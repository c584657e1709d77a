"""What the code after loading relies on, checked once, so that a damaged graph gives an error.

Names are text; every tensor is produced once, and before it is read (hence no cycles); the
operators whose attributes are read have inputs, outputs and attributes of the right kind.
onnx.checker knows more, but it is slow on large graphs and needs the external data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.files.walk import iter_graphs, iter_nested_nodes, iter_tensors

_INPUTS = {
    "MatMul": 2,
    "Gemm": 2,
    "Conv": 2,
    "Add": 2,
    "Gather": 2,
    "Transpose": 1,
    "Cast": 1,
    "Identity": 1,
    "Constant": 0,
}
_INPUTS |= {"DequantizeLinear": 2, "QuantizeLinear": 2}
_INPUTS |= {"Mul": 2, "Div": 2, "Sub": 2, "Reshape": 2, "Squeeze": 1, "Unsqueeze": 1, "Dropout": 1}
_CONTRIBUTED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_TWO_AND_NO_MORE = frozenset({"Add", "Div", "MatMul", "Mul", "Sub"})
_ATTRIBUTES = {
    ("Gemm", "transA"): AttributeProto.INT,
    ("Gemm", "transB"): AttributeProto.INT,
    ("Gemm", "alpha"): AttributeProto.FLOAT,
    ("Gemm", "beta"): AttributeProto.FLOAT,
    ("Gather", "axis"): AttributeProto.INT,
    ("Conv", "group"): AttributeProto.INT,
    ("Conv", "strides"): AttributeProto.INTS,
    ("Conv", "pads"): AttributeProto.INTS,
    ("Conv", "dilations"): AttributeProto.INTS,
    ("Conv", "auto_pad"): AttributeProto.STRING,
    ("Transpose", "perm"): AttributeProto.INTS,
    ("Cast", "to"): AttributeProto.INT,
    ("Squeeze", "axes"): AttributeProto.INTS,
    ("Unsqueeze", "axes"): AttributeProto.INTS,
    ("Reshape", "allowzero"): AttributeProto.INT,
    ("Constant", "value_float"): AttributeProto.FLOAT,
    ("Constant", "value_floats"): AttributeProto.FLOATS,
    ("Constant", "value_int"): AttributeProto.INT,
    ("Constant", "value_ints"): AttributeProto.INTS,
    ("DequantizeLinear", "axis"): AttributeProto.INT,
    ("DequantizeLinear", "block_size"): AttributeProto.INT,
    ("DequantizeLinear", "output_dtype"): AttributeProto.INT,
    ("QuantizeLinear", "axis"): AttributeProto.INT,
    ("QuantizeLinear", "block_size"): AttributeProto.INT,
    ("QuantizeLinear", "output_dtype"): AttributeProto.INT,
}
_DAMAGED = "the graph is damaged; onnx.checker.check_model may tell more"


def check_structure(proto: ModelProto, where: Where) -> None:
    """Raises GraphError for a graph that breaks one of the rules above."""
    for name in _texts(proto):
        # Protobuf hands out bytes where a string field is no valid UTF-8.
        if not isinstance(name, str):
            raise GraphError(
                f"the graph holds a name that is not UTF-8 text: {name!r:.80}",
                where=where,
                hint=_DAMAGED,
            )
    _check_order(proto.graph, where)
    for node in proto.graph.node:
        _check_node(node, where)


def _texts(proto: ModelProto) -> Iterator[object]:
    for entry in proto.opset_import:
        yield entry.domain
    for graph in iter_graphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from _properties(value.metadata_props)
        for node in graph.node:
            yield from _node_texts(node)
        for annotation in graph.quantization_annotation:
            yield annotation.tensor_name
    for function in proto.functions:
        yield function.name
    for node, _ in iter_nested_nodes(proto):
        yield from _node_texts(node)
    for tensor in iter_tensors(proto):
        yield tensor.name
        yield from _properties(tensor.external_data)


def _node_texts(node: NodeProto) -> Iterator[object]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for attribute in node.attribute:
        yield attribute.name
    yield from _properties(node.metadata_props)


def _properties(entries: Iterable[object]) -> Iterator[object]:
    for entry in entries:
        yield getattr(entry, "key", "")
        yield getattr(entry, "value", "")


def _check_order(graph: GraphProto, where: Where) -> None:
    given = {value.name for value in graph.input}
    stored = {tensor.name for tensor in graph.initializer}
    stored.update(sparse.values.name for sparse in graph.sparse_initializer)
    if len(given) != len(graph.input) or len(stored) != (
        len(graph.initializer) + len(graph.sparse_initializer)
    ):
        raise GraphError(
            "two graph inputs or two initializers have one name", where=where, hint=_DAMAGED
        )
    known = given | stored | {""}
    produced = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if name in known:
                continue
            reason = (
                "is read before it is produced: the nodes are not in topological order, or form a "
                "cycle"
                if name in produced
                else "is neither an input, an initializer nor the output of a node"
            )
            raise GraphError(
                f"the tensor {name!r} {reason}", where=_at(where, node, name), hint=_DAMAGED
            )
        for name in node.output:
            if name and name in known:
                raise GraphError(
                    f"the tensor {name!r} is defined twice",
                    where=_at(where, node, name),
                    hint=_DAMAGED,
                )
            known.add(name)
    for value in graph.output:
        if not value.name or value.name not in known:
            raise GraphError(
                f"no node produces the graph output {value.name!r}",
                where=Where(file=where.file, tensor=value.name),
                hint=_DAMAGED,
            )


def _check_node(node: NodeProto, where: Where) -> None:
    _check_attributes(node, where)
    least = _INPUTS.get(node.op_type)
    is_known = node.domain in ("", "ai.onnx") or (
        node.domain == "com.microsoft" and node.op_type in _CONTRIBUTED
    )
    if least is None or not is_known:
        return
    if len(node.input) < least or not all(node.input[:least]) or not any(node.output[:1]):
        raise GraphError(
            f"a {node.op_type} node has inputs {list(node.input)} and outputs "
            f"{list(node.output)}, expected at least {least} and one",
            where=_at(where, node),
            hint=_DAMAGED,
        )
    if node.op_type in _TWO_AND_NO_MORE and len(node.input) > least:
        raise GraphError(
            f"a {node.op_type} node has inputs {list(node.input)}, expected {least} and no more",
            where=_at(where, node),
            hint=_DAMAGED,
        )
    for attribute in node.attribute:
        wanted = _ATTRIBUTES.get((node.op_type, attribute.name))
        if wanted is not None and attribute.type != wanted:
            raise GraphError(
                f"attribute {attribute.name!r} of a {node.op_type} node is of another type than "
                f"{AttributeProto.AttributeType.Name(wanted)}",
                where=_at(where, node),
                hint=_DAMAGED,
            )
    if node.op_type == "Cast" and not any(a.name == "to" for a in node.attribute):
        raise GraphError("a Cast node has no attribute 'to'", where=_at(where, node), hint=_DAMAGED)


def _check_attributes(node: NodeProto, where: Where) -> None:
    """An attribute has a value; only those inside of a function may refer to the function's."""
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.type == AttributeProto.UNDEFINED:
            reason = "refers to that of a function" if attribute.ref_attr_name else "has no type"
            raise GraphError(
                f"attribute {attribute.name!r} of a {node.op_type} node {reason}",
                where=_at(where, node),
                hint=_DAMAGED,
            )


def _at(where: Where, node: NodeProto, tensor: str | None = None) -> Where:
    return Where(file=where.file, tensor=tensor, node=node.name or None)
