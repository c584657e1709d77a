"""How far the HTP may be from the CPU on one quantized graph, in steps of an output's grid.

    sums and products alone      p sqrt(n)
    with other functions         max( p sqrt(n), 3 max|y_cpu - y_ref| / step )

Both engines compute the same sums of integers; they differ in how they bring them onto the grid of
a result. For n such roundings in a row that is a random walk: p is what one product may be off by,
the most that was measured on the emulated HTP and some more:

    architectures                       from 73 on         68 and 69
    activations of 8 bits                1, allowed 2       1, allowed 2
    16 bits, weights of 8 bits        1..5, allowed 6  19..24, allowed 30
    16 bits, weights of 4 bits      13..24, allowed 30 28..40, allowed 50
    16 bits, weights of 16 bits      2..53, allowed 60       none

Two linears or convolutions with branches, 11 roundings in a row, are off by 6 to 9 steps, by 17
with ranks of 64 and a branch whose range is small beside that of its factors, and by 4 with
activations of 8 bits; 20 and 7 are allowed.

Roots, quotients, exponents and products of two activations are approximations on the HTP, and what
follows may amplify them: no formula knows by how much. Two layers of a Llama are off by 36 steps,
and by 404 for the architectures before 73, which multiply two activations in 8 bits. Beyond the
range of an inner grid, where the CPU clips and the HTP has fused that tensor away, it is 2000. The
quantization of the graph itself, y_cpu against the reference in floats, is noise that goes through
the same nodes: the HTP is off by 0.1 to 1.5 times as much, and 3 leaves room for the largest of
more draws. A graph that is far from its reference does not pass because of it: its SQNR is judged
apart.
"""

from __future__ import annotations

import math

from onnx import GraphProto, TensorProto, numpy_helper

from lora_quant.engines.onnxruntime import Array
from lora_quant.engines.qnn import has_wide_products
from lora_quant.runtime.verify.comparison import largest_difference

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_SUMS = _PRODUCTS | {
    *("Add", "Sub", "Mul", "Relu", "Clip", "QuantizeLinear", "DequantizeLinear"),
    *("Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand"),
    *("Slice", "Split", "Concat", "Gather", "Pad", "MaxPool", "Constant"),
}
_EIGHT = frozenset({TensorProto.UINT8, TensorProto.INT8})
_FOUR = frozenset({TensorProto.UINT4, TensorProto.INT4})
_SIXTEEN = frozenset({TensorProto.UINT16, TensorProto.INT16})
_OF_NOISE = 3.0
_OF_EIGHT, _OF_WEIGHTS_8, _OF_WEIGHTS_4, _OF_WEIGHTS_16 = 2.0, 6.0, 30.0, 60.0
_NARROW_WEIGHTS_8, _NARROW_WEIGHTS_4 = 30.0, 50.0


def output_steps(graph: GraphProto) -> dict[str, float]:
    """The step of every output that a DequantizeLinear with one constant scale makes."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        node = makers.get(output.name)
        if node is None or node.op_type != "DequantizeLinear":
            continue
        scale = constants.get(node.input[1])
        if scale is not None and math.prod(scale.dims) == 1:
            found[output.name] = float(numpy_helper.to_array(scale).reshape(-1)[0])
    return found


def product_bounds(graph: GraphProto, htp_arch: str) -> dict[str, float]:
    """p sqrt(n) of every output, by name."""
    is_wide = has_wide_products(htp_arch)
    depth = _depths(graph)
    types = _stored_types(graph)
    makers = {name: node for node in graph.node for name in node.output}
    held = _held(graph)
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    weights = {types.get(n.input[1]) for n in products if n.input[1] in held}
    wide = _OF_WEIGHTS_8 if is_wide else _NARROW_WEIGHTS_8
    if weights & _FOUR:
        wide = _OF_WEIGHTS_4 if is_wide else _NARROW_WEIGHTS_4
    if weights & _SIXTEEN:
        wide = _OF_WEIGHTS_16
    found = {}
    for output in graph.output:
        node = makers.get(output.name)
        stored = None if node is None else types.get(output.name)
        steps = _OF_EIGHT if stored in _EIGHT else wide
        found[output.name] = steps * math.sqrt(max(1, depth.get(output.name, 0)))
    return found


def has_functions(graph: GraphProto) -> bool:
    """Whether the graph has more than sums, and products with weights."""
    held = _held(graph)
    return any(
        node.op_type not in _SUMS or (node.op_type in _PRODUCTS and node.input[1] not in held)
        for node in graph.node
    )


def noise_bound(cpu: Array, reference: Array, step: float) -> float:
    """3 max|y_cpu - y_ref| in steps; NaN for what cannot be compared."""
    return _OF_NOISE * largest_difference(cpu, reference) / step


def _held(graph: GraphProto) -> set[str]:
    """Weights as products read them: initializers, defaults of inputs among them, dequantized."""
    stored = {tensor.name for tensor in graph.initializer}
    return stored | {n.output[0] for n in graph.node if n.input and n.input[0] in stored}


def _depths(graph: GraphProto) -> dict[str, int]:
    """Tensor -> roundings on the longest path to it; nodes are in the order of their edges."""
    depth: dict[str, int] = {}
    for node in graph.node:
        own = max((depth.get(name, 0) for name in node.input), default=0)
        own += node.op_type == "QuantizeLinear"
        depth.update((name, own) for name in node.output)
    return depth


def _stored_types(graph: GraphProto) -> dict[str, int]:
    """Tensor that a DequantizeLinear makes -> the type of what it is made from, by zero points."""
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {
        node.output[0]: stored[name]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for name in (node.input[2] if len(node.input) > 2 else node.input[0],)
        if name in stored
    }
