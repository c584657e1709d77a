"""The attributes of nodes as Python values."""

from __future__ import annotations

from typing import Any

from onnx import NodeProto, helper


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
