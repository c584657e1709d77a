"""Recognising the nodes that compute W x with a constant W, whatever operator spells it.

    MatMul(x, W [in, out])                     last axis
    Gemm(x, W), transA, transB, alpha, beta    two-dimensional
    Conv(x, W [out, in / group, *kernel])      axis 1, not dilated
    MatMulNBits(x, W [out, blocks, bytes])     last axis; see lora_quant.graph.attach.packed_linear

W may pass through Transpose, Identity or Cast on its way from the initializer, and through a
DequantizeLinear before that.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.attach.constants import FloatConstant, NoConstant, constant_behind
from lora_quant.graph.attach.packed_linear import is_packed, recognise_packed
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import ConvGeometry, Form, LinearNode, Storage

_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_REFUSED = {
    "ConvTranspose": "a transposed convolution has no LoRA branch form",
    "FusedConv": "ONNX Runtime fused it with what follows (FusedConv)",
    "FusedGemm": "ONNX Runtime fused it with what follows (FusedGemm)",
    "FusedMatMul": "ONNX Runtime fused it with its neighbours (FusedMatMul)",
}
_LINEAR = frozenset({"MatMul", "Gemm", "Conv"})


@dataclass(frozen=True)
class NotLinear:
    """Why a node that looks like an attach point is none.

    `weight` is the tensor whose name may tell the module, "" if there is none.
    """

    node: str
    op: str
    reason: str
    weight: str = ""


def recognise(node: NodeProto, index: GraphIndex) -> LinearNode | NotLinear | None:
    """The linear that `node` computes, why it is none, or None for any other operator."""
    refused = reason_to_refuse(node)
    if refused is not None:
        weight_name = node.input[1] if len(node.input) > 1 else ""
        return NotLinear(node.name, node.op_type, refused, weight_name)
    if not is_linear(node):
        return None
    if is_packed(node):
        found = recognise_packed(node, index)
        if isinstance(found, LinearNode):
            return found
        return NotLinear(node.name, node.op_type, found, node.input[1])
    weight = constant_behind(node.input[1], index, may_be_quantized=True)
    if isinstance(weight, NoConstant):
        reason = weight.reason
        if node.op_type == "MatMul" and index.constant(node.input[0]) is not None:
            reason = "its weight is the first input (W x); expected the second (x W)"
        return NotLinear(node.name, node.op_type, reason, weight.tensor)
    if node.op_type == "MatMul":
        return _matmul(node, weight)
    if node.op_type == "Gemm":
        return _gemm(node, weight)
    return _conv(node, weight)


def is_linear(node: NodeProto) -> bool:
    """Whether the operator computes W x if its weight is constant."""
    return is_packed(node) or (node.op_type in _LINEAR and node.domain in ("", "ai.onnx"))


def reason_to_refuse(node: NodeProto) -> str | None:
    """Why an operator that computes W x in some form takes no branch, whatever its weight."""
    if node.op_type in _QUANTIZED:
        return f"its weight is quantized ({node.op_type})"
    return _REFUSED.get(node.op_type)


def _wrong_shape(node: NodeProto, weight: FloatConstant, expected: str) -> NotLinear:
    return NotLinear(
        node.name,
        node.op_type,
        f"its weight has shape {list(weight.shape)}, expected {expected}",
        weight.initializer,
    )


def _matmul(node: NodeProto, weight: FloatConstant) -> LinearNode | NotLinear:
    if len(weight.shape) != 2:
        return _wrong_shape(node, weight, "[in, out]")
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
        storage=_storage(weight),
    )


def _gemm(node: NodeProto, weight: FloatConstant) -> LinearNode | NotLinear:
    if len(weight.shape) != 2:
        return _wrong_shape(node, weight, "two axes")
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
        storage=_storage(weight),
    )


def _conv(node: NodeProto, weight: FloatConstant) -> LinearNode | NotLinear:
    if len(weight.shape) < 3 or weight.transposed:
        return _wrong_shape(node, weight, "[out, in, *kernel] as it is stored")
    given = attributes(node)
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    groups = int(given.get("group", 1))
    dilations = tuple(given.get("dilations", ones))
    if dilations != ones:
        # PEFT's own lora_A convolution is not dilated: its forward pass fails on such a module.
        reason = f"it is a dilated convolution (dilations {list(dilations)})"
        return NotLinear(node.name, node.op_type, reason, weight.initializer)
    if groups < 1 or weight.shape[0] % groups:
        return _wrong_shape(node, weight, f"[out, in, *kernel] with out a multiple of {groups}")
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.CONV,
        x=node.input[0],
        weight=weight.initializer,
        product=node.output[0],
        in_features=weight.shape[1] * groups,
        out_features=weight.shape[0],
        dtype=weight.dtype,
        weight_is_in_out=False,
        conv=ConvGeometry(
            kernel=kernel,
            strides=tuple(given.get("strides", ones)),
            pads=tuple(given.get("pads", (0,) * (2 * len(kernel)))),
            auto_pad=given.get("auto_pad", b"NOTSET").decode(errors="replace"),
            groups=groups,
        ),
        storage=_storage(weight),
    )


def _storage(weight: FloatConstant) -> Storage:
    return Storage.FLOAT if weight.dequantization is None else Storage.DEQUANTIZED
