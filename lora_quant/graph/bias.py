"""The bias Add behind a linear node: a branch is added after it.

Keeping the two nodes together leaves device compilers and ONNX Runtime their fusion, and a
quantizer gives both one encoding. The sum is the same either way.
"""

from __future__ import annotations

from lora_quant.graph.index import GraphIndex
from lora_quant.graph.records import LinearNode


def bias_after(linear: LinearNode, index: GraphIndex) -> tuple[str | None, str]:
    """Name of the bias Add that alone reads the product, None without one, and the result's tensor.

    Only a constant of shape `[out]`, for a convolution `[out, 1, ...]` or `[1, out, 1, ...]`, is a
    bias: anything else that is added belongs to the graph around the module.
    """
    node = index.sole_consumer(linear.product)
    if node is None or node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None, linear.product
    first, second = node.input[:2]
    constant = index.constant(second if first == linear.product else first)
    ones = (1,) * len(linear.conv.kernel) if linear.conv else ()
    per_channel = (linear.out_features, *ones)
    accepted = [per_channel, (1, *per_channel)] if linear.conv else [per_channel]
    if constant is None or tuple(constant.dims) not in accepted:
        return None, linear.product
    return node.name, node.output[0]
