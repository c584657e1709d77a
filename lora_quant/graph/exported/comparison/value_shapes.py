"""Whether tensors that are the same value have shapes that agree, where both graphs tell them.

A size that one graph leaves open, or gives a name, agrees with any.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ValueInfoProto

from lora_quant.graph.exported.comparison.differing import differing
from lora_quant.graph.exported.comparison.trunk import Trunk
from lora_quant.graph.files.element_types import type_name


def compare_shapes(base: Trunk, exported: Trunk, tensors: Mapping[str, str]) -> None:
    """Raises GraphError for the first tensor whose type or shape the graphs tell differently.

    `tensors`: name in the exported graph -> name in the base.
    """
    for name, partner in tensors.items():
        got = exported.graph.index.values.get(name)
        wanted = base.graph.index.values.get(partner)
        if got is not None and wanted is not None and not _agree(got, wanted):
            raise differing(
                f"the tensor {name!r} is {type_words(got)}, expected {type_words(wanted)}",
                base.graph.path,
                exported.graph.path,
                tensor=name,
            )


def _agree(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    first, second = one.type.tensor_type, other.type.tensor_type
    if first.elem_type and second.elem_type and first.elem_type != second.elem_type:
        return False
    if not first.HasField("shape") or not second.HasField("shape"):
        return True
    return len(first.shape.dim) == len(second.shape.dim) and all(
        not a.HasField("dim_value") or not b.HasField("dim_value") or a.dim_value == b.dim_value
        for a, b in zip(first.shape.dim, second.shape.dim, strict=True)
    )


def type_words(value: ValueInfoProto) -> str:
    """Type and shape in words; a size that is open is "?"."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"a {(kind or 'value of no type').replace('_type', '')}"
    tensor = value.type.tensor_type
    element = type_name(tensor.elem_type)
    if not tensor.HasField("shape"):
        return f"{element} of any shape"
    sizes = (
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
    return f"{element} of shape [{', '.join(sizes)}]"
