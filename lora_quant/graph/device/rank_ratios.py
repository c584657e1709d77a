"""A factor per rank in every branch, so that A and B of all use cases fill one constant grid.

Before                 After
    m = s * a              t = s * ratio        ratio [parts * R], an initializer of zeros
    l = B m                m = t * a
                           l = B m

With A' = A / p and B' = B / q per rank, and ratio = scale * p * q, l stays what it was: a is
smaller by p, m larger by q. The magnitudes, in which use cases differ, are in ratio alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.branching.points import node_prefix, rank_axis
from lora_quant.graph.records import Branch, TensorRecord


@dataclass(frozen=True)
class RankRatio:
    """The ratio of one branch: its weight, in the shape of s, and t = s * ratio."""

    branch: Branch
    weight: TensorRecord
    product: str


def add_rank_ratios(
    proto: ModelProto, branches: Iterable[Branch], where: Where
) -> tuple[RankRatio, ...]:
    """Edit a branched graph in place. Raises GraphError if a name that is needed is taken."""
    graph = proto.graph
    taken = {tensor.name for tensor in graph.initializer}
    taken.update(name for node in graph.node for name in (node.name, *node.output))
    ratios = {branch.m: _ratio(branch) for branch in branches}
    nodes: list[NodeProto] = []
    for node in graph.node:
        made = ratios.get(node.output[0])
        if made is not None:
            name = made.product.removesuffix("_output_0")
            for needed in (made.weight.name, made.product, name):
                if needed in taken:
                    raise GraphError(
                        f"the graph already has a tensor or node named {needed!r}, which the "
                        "branches need",
                        where=Where(file=where.file, tensor=needed),
                        hint="rename it in the base graph",
                    )
            nodes.append(
                helper.make_node(
                    "Mul", [node.input[1], made.weight.name], [made.product], name=name
                )
            )
            node.input[1] = made.product
            graph.initializer.append(_zeros(made.weight))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return tuple(ratios.values())


def _ratio(branch: Branch) -> RankRatio:
    linear = branch.attach.linear
    ranks = branch.b_weight.shape[rank_axis(branch.attach, is_a=False)]
    axes = len(linear.conv.kernel) if linear.conv is not None else 0
    shape = (1, ranks, *(1,) * axes) if axes else (ranks,)
    weight = TensorRecord(f"{branch.attach.name}.lora_ratio", shape, linear.dtype)
    return RankRatio(branch, weight, f"{node_prefix(branch.attach)}/lora_ratio/Mul_output_0")


def _zeros(record: TensorRecord) -> TensorProto:
    tensor = TensorProto(name=record.name, data_type=TensorProto.FLOAT, dims=record.shape)
    tensor.raw_data = bytes(4 * math.prod(record.shape))
    return tensor
