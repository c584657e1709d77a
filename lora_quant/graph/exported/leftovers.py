"""Linear nodes that are named like parts of a branch, and that no branch and no report covers.

Names decide what is reported here; they never make a branch. What computes a scale from an input is
linear as well, and no part of a branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.pairs import NearPair, Pair, pair_behind
from lora_quant.graph.exported.records import NearBranch
from lora_quant.graph.exported.walk_up import Walker
from lora_quant.graph.records import LinearNode

_CERTAIN = re.compile(r"lora_", re.IGNORECASE)
# Vision models have parts of this name as well: only A and B in a row are reported.
_LIKELY = re.compile(r"adapter", re.IGNORECASE)


def leftovers(covered: Set[str], walker: Walker, graph: BaseGraph) -> Iterator[NearBranch]:
    """One report for each A and B, or part of them alone; `covered` are outputs of linear nodes."""
    named = [
        linear
        for catalog in (graph.catalog, graph.catalog.embeddings)
        for linear in catalog.linears.values()
        if linear.product not in covered
        and _CERTAIN.search(_names(linear))
        and not walker.is_scale(linear.product)
    ]
    likely = [
        linear
        for linear in graph.catalog.linears.values()
        if linear.product not in covered and _LIKELY.search(_names(linear))
    ]
    known = {linear.product for linear in named}
    pairs = {linear.product: pair_behind(linear.product, walker, graph) for linear in named}
    pairs |= {
        linear.product: pair
        for linear in likely
        if linear.product not in known
        and (pair := pair_behind(linear.product, walker, graph)) is not None
    }
    inner = {product for pair in pairs.values() if pair is not None for product in _a_of(pair)}
    for linear in sorted((*named, *likely), key=lambda one: graph.index.positions[one.product]):
        if linear.product in pairs and linear.product not in inner:
            reason = _reason(linear, pairs.pop(linear.product), walker, graph)
            yield NearBranch(linear.label, reason)


def _names(linear: LinearNode) -> str:
    return f"{linear.node} {linear.weight} {linear.product}"


def _a_of(pair: Pair | NearPair) -> tuple[str, ...]:
    return (pair.a.product,) if isinstance(pair, Pair) else pair.parts[:1]


def _reason(
    linear: LinearNode, pair: Pair | NearPair | None, walker: Walker, graph: BaseGraph
) -> str:
    begin = "it is named like a part of a branch, and"
    if isinstance(pair, NearPair):
        return f"{begin} {pair.reason}"
    if isinstance(pair, Pair):
        return (
            f"{begin} what it gives is not added to the output of a linear node that reads the same"
        )
    below = walker.up(linear.x)
    node = graph.index.producers.get(below.begin)
    what = "a graph input" if node is None else f"what {node.op_type} gives"
    return f"{begin} reads {what}, behind no other linear node; no B with a sum follows it"
