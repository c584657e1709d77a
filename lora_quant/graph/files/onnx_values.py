"""Element types of ONNX by name, and the attributes of nodes as Python values."""

from __future__ import annotations

from typing import Any

from onnx import NodeProto, TensorProto, helper

FLOAT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def type_name(element: int) -> str:
    """An ONNX element type in words; the number itself for one that is not known."""
    known = element in TensorProto.DataType.values()
    return TensorProto.DataType.Name(element).lower() if known else str(element)
