"""The element type of every tensor of a graph, as far as it can be told without inference.

stored values and inputs have one; an operator gives one type, or that of an input, by its schema
"""

from __future__ import annotations

from functools import cache

from onnx import AttributeProto, NodeProto, TensorProto, defs

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import FLOAT_TYPES
from lora_quant.graph.files.model_file import plain_domain

# "tensor(float)" of a schema -> the element type.
_NAMED: dict[str, int] = {
    f"tensor({name.lower()})": number
    for name, number in TensorProto.DataType.items()
    if number != TensorProto.UNDEFINED
}


def element_types(graph: BaseGraph) -> dict[str, int]:
    """Tensor -> element type; a tensor whose type is not known is left out."""
    proto = graph.model.proto
    told = {name: v.type.tensor_type.elem_type for name, v in graph.index.values.items()}
    types = {v.name: told[v.name] for v in proto.graph.input}
    types.update((t.name, t.data_type) for t in proto.graph.initializer)
    versions = {plain_domain(o.domain): o.version for o in proto.opset_import}
    for node in proto.graph.node:
        constant = graph.index.constant(node.output[0]) if node.output else None
        for position, name in enumerate(node.output):
            if constant is not None:
                found = constant.data_type
            else:
                found = _given(node, position, types, versions) or told.get(name, 0)
            if name and found:
                types[name] = found
    return types


def _given(node: NodeProto, output: int, types: dict[str, int], versions: dict[str, int]) -> int:
    """The type of an output by what the node reads, 0 if that does not tell."""
    if node.op_type == "Cast":
        return next(
            (int(a.i) for a in node.attribute if a.name == "to" and a.type == AttributeProto.INT), 0
        )
    read = [types.get(name, 0) for name in node.input]
    domain = plain_domain(node.domain)
    rule = _rule(node.op_type, domain, versions.get(domain, 0), output)
    if isinstance(rule, int):
        return rule
    if rule is not None:
        return next((read[i] for i in rule if i < len(read) and read[i]), 0)
    # Operators that onnx has no schema for: those of ONNX Runtime compute in what they read.
    return read[0] if output == 0 and read and read[0] in FLOAT_TYPES else 0


@cache
def _rule(op: str, domain: str, version: int, output: int) -> int | tuple[int, ...] | None:
    """The type of an output, or the inputs that have the same one; None without a schema."""
    try:
        schema = defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None
    if not schema.outputs:
        return 0
    text = schema.outputs[min(output, len(schema.outputs) - 1)].type_str
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    choices = list(allowed.get(text, [text]))
    if len(choices) == 1:
        return _NAMED.get(str(choices[0]), 0)
    same = [i for i, formal in enumerate(schema.inputs) if formal.type_str == text]
    return tuple(same)
