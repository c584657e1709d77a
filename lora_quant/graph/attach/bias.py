"""The tensor behind a linear node that a branch is added to: after its bias Add, and its Q/DQ pair.

    W x  ->  Add(bias)  ->  QuantizeLinear -> DequantizeLinear  ->  output

Each step may be absent, and a quantizer may put a Q/DQ pair in front of the Add as well. Keeping
linear and bias together leaves device compilers and ONNX Runtime their fusion, and a quantizer
gives both one encoding. The sum is the same either way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.attach.constants import FloatConstant, constant_behind
from lora_quant.graph.attach.output_grid import grid_behind
from lora_quant.graph.attach.packed_linear import BIAS
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import Form, LinearNode, OutputGrid


@dataclass(frozen=True)
class Outcome:
    """The bias Add (None without one), the tensor that consumers read, and its Q/DQ pair."""

    bias: BiasAdd | None
    output: str
    grid: OutputGrid | None


@dataclass(frozen=True)
class BiasAdd:
    """The Add behind a linear node, and which of its inputs is the constant bias."""

    node: NodeProto
    position: int


def outcome_of(linear: LinearNode, index: GraphIndex) -> Outcome:
    """What a module gives, and through which nodes.

    Only a constant of shape `[out]`, for a convolution `[out, 1, ...]` or `[1, out, 1, ...]`, is a
    bias: anything else that is added belongs to the graph around the module, as does everything
    that is added to the rows of an embedding.
    """
    found = grid_behind(linear.product, index)
    output = linear.product if found is None else found[0]
    grid = None if found is None else found[1]
    if linear.form is Form.EMBEDDING or (grid is not None and grid.others):
        return Outcome(None, output, grid)
    bias = _bias_add(linear, output, index)
    if bias is None:
        return Outcome(None, output, grid)
    output = bias.node.output[0]
    found = grid_behind(output, index)
    return Outcome(bias, *((output, None) if found is None else found))


def bias_inputs(linear: LinearNode, index: GraphIndex) -> list[tuple[str, float]]:
    """The tensors that are added to W x, by the node itself or behind it, each with its factor."""
    node = index.producers[linear.product]
    found = []
    position = BIAS if linear.op == "MatMulNBits" else 2
    has_own = linear.op in ("Gemm", "Conv", "MatMulNBits")
    if has_own and len(node.input) > position and node.input[position]:
        factor = attributes(node).get("beta", 1.0) if linear.op == "Gemm" else 1.0
        found.append((node.input[position], float(factor)))
    bias = outcome_of(linear, index).bias
    if bias is not None:
        found.append((bias.node.input[bias.position], 1.0))
    return found


def bias_problem(bias: FloatConstant, linear: LinearNode) -> str | None:
    """Why a constant is not one value for each output feature, or one for all; None if it is."""
    size = math.prod(bias.shape)
    # Gemm broadcasts C to [rows, out]: a column would be one value per row.
    is_column = linear.op == "Gemm" and size > 1 and bias.shape[-1] != size
    if size in (1, linear.out_features) and not is_column:
        return None
    return (
        f"the bias has shape {list(bias.shape)}, expected one value for each of the "
        f"{linear.out_features} output features"
    )


def _bias_add(linear: LinearNode, product: str, index: GraphIndex) -> BiasAdd | None:
    node = index.sole_consumer(product)
    if node is None or node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    position = int(node.input[0] == product)
    # Exporters put an Identity before a bias that equals another one.
    constant = constant_behind(node.input[position], index, may_be_quantized=True)
    ones = (1,) * len(linear.conv.kernel) if linear.conv else ()
    per_channel = (linear.out_features, *ones)
    accepted = [per_channel, (1, *per_channel)] if linear.conv else [per_channel]
    if not isinstance(constant, FloatConstant) or constant.shape not in accepted:
        return None
    return BiasAdd(node, position)
