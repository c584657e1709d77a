"""Operators that the HTP gets wrong, in terms of others that it gets right.

    Reciprocal(x)    ->    Div(1, x)

As ONNX Runtime's QNN provider 2.7 compiles it, a quantized Reciprocal is off by half of its value;
the Div is as exact as its grids.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper


def replace_operators(proto: ModelProto) -> None:
    """Edit a graph in place; names of nodes and of what they give stay."""
    for node in proto.graph.node:
        if node.op_type != "Reciprocal" or node.domain not in ("", "ai.onnx"):
            continue
        one = numpy_helper.from_array(np.ones((), np.float32), f"{node.output[0]}_one")
        proto.graph.initializer.append(one)
        made = helper.make_node("Div", [one.name, *node.input], list(node.output), name=node.name)
        node.CopyFrom(made)
