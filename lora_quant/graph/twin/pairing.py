"""Which quantized node is which float node, where values leave several that are alike.

    one candidate       it is that one
    several candidates  the one with the same connections; else the one of the same name;
                        else, if as many nodes as candidates are left, their order decides

No float node is given twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lora_quant.errors import GraphError, Where, some
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import LinearNode
from lora_quant.graph.twin.surroundings import Surroundings, by_label, refined
from lora_quant.graph.twin.traces import Traces

_Group = tuple[list[str], list[str]]


class Pairing:
    """Collects the candidates of every node, then decides for all at once."""

    def __init__(self, base: BaseGraph, twin: BaseGraph) -> None:
        self._base = base
        self._nodes = {one.product: one for one in _linears(base)}
        self._floats = {one.product: one for one in _linears(twin)}
        self._twin = twin
        self._open: dict[str, tuple[str, ...]] = {}
        self._pairs: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def add(self, product: str, candidates: Sequence[str]) -> None:
        """A node of the quantized graph, and those of the float graph that it can be.

        All are told by their products. Raises GraphError if its only candidate is another's.
        """
        if len(candidates) > 1:
            self._open[product] = tuple(candidates)
        else:
            self._take(product, candidates[0])

    def solve(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Quantized product -> float product, and the quantized ones that only their order told.

        Raises GraphError if several nodes cannot be told apart.
        """
        by_order: list[str] = []
        self._drop_taken()
        if not self._open:
            return self._pairs, ()
        sides = (
            Surroundings(self._base, tuple(self._nodes)),
            Surroundings(self._twin, tuple(self._floats)),
        )
        traces = Traces(self._twin, self._floats.values())
        while self._open:
            groups = list(self._alike(*sides))
            found = [group for group in groups if len(group[0]) == len(group[1]) == 1]
            found = found or list(self._of_one_name(groups, traces))
            if not found:
                nodes, floats = groups[0]
                if len(nodes) != len(floats):
                    raise self._undecided(nodes, floats)
                by_order += nodes
                found = [([one], [other]) for one, other in zip(nodes, floats, strict=True)]
            for (product,), (float_product,) in found:
                del self._open[product]
                self._take(product, float_product)
            self._drop_taken()
        return self._pairs, tuple(by_order)

    def _take(self, product: str, float_product: str) -> None:
        other = self._taken.get(float_product)
        if other is not None:
            first, second = self._nodes[other], self._nodes[product]
            floats = self._floats[float_product]
            raise GraphError(
                f"nodes {first.label!r} and {second.label!r} both hold the "
                f"weight that the float graph has once, at {floats.label!r}",
                where=Where(file=self._base.path, node=second.node or None),
                hint="give the float graph that was quantized, as it was before, or name the nodes "
                "in `attach_point_onnx_mapping`",
            )
        self._taken[float_product] = product
        self._pairs[product] = float_product

    def _drop_taken(self) -> None:
        """Take away candidates that are given to others, until nothing follows from it."""
        changed = True
        while changed:
            changed = False
            for product, known in list(self._open.items()):
                left = tuple(one for one in known if one not in self._taken)
                self._open[product] = left
                if len(left) < 2:
                    del self._open[product]
                    self._take(product, (left or known)[0])
                    changed = True

    def _alike(self, nodes: Surroundings, floats: Surroundings) -> Iterator[_Group]:
        """Open nodes, and the float ones that have their values and connections."""
        classes = self._classes()
        own = [
            self._pairs[product] if product in self._pairs else classes[self._open[product][0]]
            for product in self._nodes
        ]
        other = [classes.get(product, product) for product in self._floats]
        labels, float_labels = refined([(nodes, list(own)), (floats, list(other))])
        found = by_label(dict(zip(self._floats, float_labels, strict=True)))
        for label, group in by_label(dict(zip(self._nodes, labels, strict=True))).items():
            if group[0] in self._open:
                yield group, found.get(label, [])

    def _classes(self) -> dict[str, str]:
        """Every candidate -> one of those that some chain of nodes takes for it."""
        members: dict[str, list[str]] = {}
        classes: dict[str, str] = {}
        for known in self._open.values():
            first = classes.setdefault(known[0], known[0])
            members.setdefault(first, [first])
            for one in known[1:]:
                old = classes.get(one, one)
                if old != first:
                    moved = members.pop(old, [one])
                    members[first] += moved
                    classes.update(dict.fromkeys(moved, first))
        return classes

    def _of_one_name(self, groups: Sequence[_Group], traces: Traces) -> Iterator[_Group]:
        """Nodes with the one candidate that shares a name with each, and with no other node."""
        found: dict[str, list[str]] = {}
        for nodes, floats in groups:
            for product in nodes:
                named = traces.find(self._base, self._nodes[product])
                for float_product in named.intersection(floats or self._open[product]):
                    found.setdefault(float_product, []).append(product)
        times = Counter(product for claims in found.values() for product in claims)
        for float_product, claims in found.items():
            if len(claims) == 1 and times[claims[0]] == 1:
                yield claims, [float_product]

    def _undecided(self, nodes: Sequence[str], floats: Sequence[str]) -> GraphError:
        what = f"the float graph has {some(floats)}" if floats else "no float node is connected"
        return GraphError(
            f"nodes {some(nodes)} cannot be told apart: their weights are equal, and {what} in "
            "their place",
            where=Where(file=self._base.path, node=self._nodes[nodes[0]].node or None),
            hint="name these nodes in `attach_point_onnx_mapping`",
        )


def _linears(graph: BaseGraph) -> tuple[LinearNode, ...]:
    catalog = graph.catalog
    return (*catalog.linears.values(), *catalog.embeddings.linears.values())
