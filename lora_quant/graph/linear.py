"""Recognising the nodes that compute W x with a constant W, whatever operator spells it.

    MatMul(x, W [in, out])                     last axis
    Gemm(x, W), transA, transB, alpha, beta    two-dimensional
    Conv(x, W [out, in / group, *kernel])      axis 1

W may pass through Transpose, Identity or Cast on its way from the initializer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, TensorProto, helper

from lora_quant.graph.index import GraphIndex
from lora_quant.graph.records import ConvGeometry, Form, LinearNode

FLOAT_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
QUANTIZED_OPS = frozenset({"MatMulNBits", "QLinearMatMul", "QGemm", "QLinearConv", "MatMulInteger"})
LINEAR_OPS = frozenset({"MatMul", "Gemm", "Conv"})


@dataclass(frozen=True)
class NotLinear:
    """Why a node that looks like an attach point is none."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class _Weight:
    initializer: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool


def recognise(node: NodeProto, index: GraphIndex) -> LinearNode | NotLinear | None:
    """The linear that `node` computes, the reason why it is none, or None for any other operator."""
    if node.op_type in QUANTIZED_OPS:
        return NotLinear(node.name, node.op_type, f"its weight is quantized ({node.op_type})")
    if node.op_type not in LINEAR_OPS or node.domain not in ("", "ai.onnx"):
        return None
    weight = _weight(node.input[1], index)
    if isinstance(weight, str):
        return NotLinear(node.name, node.op_type, weight)
    if node.op_type == "MatMul":
        return _matmul(node, weight)
    if node.op_type == "Gemm":
        return _gemm(node, weight)
    return _conv(node, weight)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _weight(tensor: str, index: GraphIndex) -> _Weight | str:
    """The constant behind a weight input, or the reason why there is none."""
    transposed = False
    seen = set()
    dtype: int | None = None
    while tensor not in seen:
        seen.add(tensor)
        constant = index.constant(tensor)
        if constant is not None:
            element = dtype if dtype is not None else constant.data_type
            if element not in FLOAT_TYPES:
                name = TensorProto.DataType.Name(element).lower()
                return f"its weight is of type {name}, expected float32, float16 or bfloat16"
            shape = tuple(constant.dims)
            return _Weight(
                initializer=tensor,
                shape=tuple(reversed(shape)) if transposed else shape,
                dtype=FLOAT_TYPES[element],
                transposed=transposed,
            )
        node = index.producers.get(tensor)
        if node is None:
            return "its weight is a graph input"
        if node.op_type == "Transpose":
            permutation = attributes(node).get("perm")
            if permutation is not None and list(permutation) != [1, 0]:
                return f"its weight passes through a Transpose with perm {list(permutation)}"
            transposed = not transposed
        elif node.op_type == "Cast":
            dtype = dtype if dtype is not None else int(attributes(node)["to"])
        elif node.op_type == "DequantizeLinear":
            return "its weight is quantized (DequantizeLinear)"
        elif node.op_type != "Identity":
            return f"its weight is computed by {node.op_type}, not constant"
        tensor = node.input[0]
    return "its weight is defined by a cycle"


def _matmul(node: NodeProto, weight: _Weight) -> LinearNode | NotLinear:
    if len(weight.shape) != 2:
        return NotLinear(
            node.name,
            node.op_type,
            f"its weight has shape {list(weight.shape)}, expected [in, out]",
        )
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.MATMUL,
        x=node.input[0],
        weight=weight.initializer,
        product=node.output[0],
        in_features=weight.shape[0],
        out_features=weight.shape[1],
        dtype=weight.dtype,
        weight_is_in_out=not weight.transposed,
    )


def _gemm(node: NodeProto, weight: _Weight) -> LinearNode | NotLinear:
    if len(weight.shape) != 2:
        return NotLinear(
            node.name, node.op_type, f"its weight has shape {list(weight.shape)}, expected two axes"
        )
    given = attributes(node)
    is_out_in = bool(given.get("transB", 0))
    first, second = weight.shape
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.MATMUL,
        x=node.input[0],
        weight=weight.initializer,
        product=node.output[0],
        in_features=second if is_out_in else first,
        out_features=first if is_out_in else second,
        dtype=weight.dtype,
        weight_is_in_out=is_out_in == weight.transposed,
        input_transposed=bool(given.get("transA", 0)),
        gain=float(given.get("alpha", 1.0)),
    )


def _conv(node: NodeProto, weight: _Weight) -> LinearNode | NotLinear:
    if len(weight.shape) < 3 or weight.transposed:
        return NotLinear(
            node.name,
            node.op_type,
            f"its weight has shape {list(weight.shape)}, expected [out, in, *kernel]",
        )
    given = attributes(node)
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    group = int(given.get("group", 1))
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.CONV,
        x=node.input[0],
        weight=weight.initializer,
        product=node.output[0],
        in_features=weight.shape[1] * group,
        out_features=weight.shape[0],
        dtype=weight.dtype,
        weight_is_in_out=False,
        conv=ConvGeometry(
            kernel=kernel,
            strides=tuple(given.get("strides", ones)),
            pads=tuple(given.get("pads", (0,) * (2 * len(kernel)))),
            dilations=tuple(given.get("dilations", ones)),
            auto_pad=given.get("auto_pad", b"NOTSET").decode(),
            group=group,
        ),
    )
