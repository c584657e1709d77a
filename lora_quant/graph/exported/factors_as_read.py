"""Factors that their nodes do not read as they are stored, with the tensor that is read instead.

q.lora_A.weight [r, in]  ->  Transpose  ->  t [in, r]  ->  MatMul       q.lora_A.weight: t, [in, r]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lora_quant.graph.exported.records import ExportedGraph
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import Form, LinearNode


def factors_as_read(exported: ExportedGraph) -> Mapping[str, LinearNode]:
    """Weight of a factor -> its node, `weight` and layout being those of what the node reads.

    Without the weights that nodes read directly.
    """
    found: dict[str, LinearNode] = {}
    for point in exported.points:
        for branch in point.branches:
            for linear in (branch.a, branch.b):
                node = exported.graph.index.producers[linear.product]
                read = node.input[0 if linear.form is Form.EMBEDDING else 1]
                if read != linear.weight:
                    in_out = node.op_type != "Conv" and not attributes(node).get("transB", 0)
                    found.setdefault(
                        linear.weight, replace(linear, weight=read, weight_is_in_out=in_out)
                    )
    return found
