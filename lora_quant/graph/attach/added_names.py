"""What quantizers and optimizers add to the names of nodes and tensors.

    /fc/MatMul_Q4, /fc/MatMul_Q4G32, /fc/MatMul_matmul_Q4      nodes of MatMulNBits
    /fc/MatMul/MatMulAddFusion, .../MatMulAddFusion_token_4    nodes that a fusion made
    fc.weight_Q4, val_105_DQ_Q4, fc.weight_quantized, val_7_q  codes of a weight
    27_QuantizeLinear_Input, linear_Q4                         outputs

Without it the name is the one that the float graph has.
"""

from __future__ import annotations

import re

_NODE = re.compile(r"(?:_matmul)?_Q\d+(?:G\d+)?$|(?<=.)/\w+Fusion(?:_token_\d+)?/?$")
_TENSOR = re.compile(r"(?:_DQ)?_Q\d+(?:G\d+)?$|_(?:quantized|q|QuantizeLinear_Input)$")


def plain_node_name(name: str) -> str:
    """The name of a node without such a suffix."""
    return _NODE.sub("", name) or name


def plain_tensor_name(name: str) -> str:
    """The name of a weight or an output without such a suffix."""
    return _TENSOR.sub("", name) or name
