"""The base's linear node that a sum adds a branch to.

W x  ->  [bias]  ->  [Q/DQ]  ->  [change of layout or type]  ->  h
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.attach.bias import outcome_of
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.walk_up import Walker
from lora_quant.graph.records import LinearNode


@dataclass(frozen=True, eq=False)
class BaseOutput:
    """What a base linear gives, and the nodes that change its layout before the sum, in order.

    `problem` tells why a branch cannot be added there, "" if it can.
    """

    linear: LinearNode
    relayouts: tuple[NodeProto, ...]
    problem: str = ""


def base_behind(h: str, walker: Walker, graph: BaseGraph) -> BaseOutput | None:
    """The base linear whose output `h` is, nearly at least; None if it is none's."""
    index = graph.index
    sources = walker.sources(h)
    relayouts = tuple(index.producers[tensor] for tensor in reversed(sources[:-1]))
    output = sources[-1]
    linear = walker.linear_at(output)
    if isinstance(linear, LinearNode):
        return BaseOutput(linear, relayouts)
    walk = walker.up(output)
    linear = walk.linear
    if isinstance(linear, LinearNode):
        if outcome_of(linear, index).output == output:
            return BaseOutput(linear, relayouts)
        ops = ", ".join(step.node.op_type for step in walk.steps)
        problem = f"what it is added to is not what {linear.label!r} gives, but behind it ({ops})"
        return BaseOutput(linear, relayouts, problem)
    if isinstance(linear, NotLinear):
        return None
    node = index.producers.get(walk.begin)
    if node is not None and node.op_type == "Add":
        for tensor in node.input:
            summed = walker.linear_at(walker.sources(tensor)[-1])
            if isinstance(summed, LinearNode):
                problem = f"it is added to a sum ({node.name or node.output[0]!r}), not to what "
                return BaseOutput(summed, (), f"{problem}{summed.label!r} gives")
    return None
