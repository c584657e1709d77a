"""The names by which nodes of a quantized graph and of its float twin may be known as one.

    /fc/MatMul_Q4, val_105_DQ_Q4, linear_Q4   ~   /fc/MatMul, val_105, linear

Exporters number nodes and weights, so that equal names alone prove nothing: another export of the
model can have them elsewhere. They tell nodes apart that are alike in everything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from lora_quant.graph.attach.added_names import plain_node_name, plain_tensor_name
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import LinearNode

_Trace = tuple[str, str]


class Traces:
    """Which nodes of a float graph bear the names of a node of the quantized one."""

    def __init__(self, twin: BaseGraph, linears: Iterable[LinearNode]) -> None:
        self._products: dict[_Trace, set[str]] = defaultdict(set)
        for linear in linears:
            for trace in _traces(twin, linear):
                self._products[trace].add(linear.product)

    def find(self, base: BaseGraph, linear: LinearNode) -> frozenset[str]:
        """Products of the float nodes that share a name with `linear`, which none else bears."""
        found: set[str] = set()
        for trace in _traces(base, linear):
            products = self._products.get(trace, set())
            if len(products) == 1:
                found |= products
        return frozenset(found)


def _traces(graph: BaseGraph, linear: LinearNode) -> Iterator[_Trace]:
    """A weight that several nodes read tells none of them."""
    if linear.node:
        yield "node", plain_node_name(linear.node)
    yield "output", plain_tensor_name(linear.product)
    if not graph.index.is_shared(linear.weight):
        yield "weight", plain_tensor_name(linear.weight)
