"""The bias Add behind a linear node: a branch is added after it.

Keeping the two nodes together leaves device compilers and ONNX Runtime their fusion, and a
quantizer gives both one encoding. The sum is the same either way.
"""

from __future__ import annotations

from lora_quant.graph.constants import FloatConstant, attributes, constant_behind
from lora_quant.graph.index import GraphIndex
from lora_quant.graph.records import Form, LinearNode


def bias_after(linear: LinearNode, index: GraphIndex) -> tuple[str | None, str]:
    """Name of the bias Add that alone reads the product, None without one, and the result's tensor.

    Only a constant of shape `[out]`, for a convolution `[out, 1, ...]` or `[1, out, 1, ...]`, is a
    bias: anything else that is added belongs to the graph around the module, as does everything
    that is added to the rows of an embedding.
    """
    node = index.sole_consumer(linear.product)
    if node is None or node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None, linear.product
    if linear.form is Form.EMBEDDING:
        return None, linear.product
    first, second = node.input[:2]
    # Exporters put an Identity before a bias that equals another one.
    constant = constant_behind(second if first == linear.product else first, index)
    ones = (1,) * len(linear.conv.kernel) if linear.conv else ()
    per_channel = (linear.out_features, *ones)
    accepted = [per_channel, (1, *per_channel)] if linear.conv else [per_channel]
    if not isinstance(constant, FloatConstant) or constant.shape not in accepted:
        return None, linear.product
    return node.name, node.output[0]


def bias_inputs(linear: LinearNode, index: GraphIndex) -> list[tuple[str, float]]:
    """The tensors that are added to W x, by the node itself or behind it, each with its factor."""
    node = index.producers[linear.product]
    found = []
    if linear.op in ("Gemm", "Conv") and len(node.input) > 2 and node.input[2]:
        factor = attributes(node).get("beta", 1.0) if linear.op == "Gemm" else 1.0
        found.append((node.input[2], float(factor)))
    if bias_after(linear, index)[1] != linear.product:
        first, second = index.consumers[linear.product][0].input[:2]
        found.append((second if first == linear.product else first, 1.0))
    return found
