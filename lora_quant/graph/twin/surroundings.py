"""How the linear nodes of a graph are connected, whatever lies between them.

    q_proj  <-  {embed_tokens, o_proj of the layers before, ...}      -> {o_proj}

What quantizers insert or fuse (Q/DQ pairs, casts, layouts, norms) has no part in it. Nodes that
look alike are told apart by what they are connected to, and that by what it is connected to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

from lora_quant.graph.base.base_graph import BaseGraph

Labels = list[Hashable]


class Surroundings:
    """The nearest linear nodes before and behind each one, and its graph inputs and outputs."""

    def __init__(self, graph: BaseGraph, products: Sequence[str]) -> None:
        """`products` are the outputs of the linear nodes, numbered as they are given."""
        inputs = [v.name for v in graph.model.proto.graph.input]
        inputs = [name for name in inputs if name not in graph.index.initializers]
        self._inputs = inputs
        numbers = {product: number for number, product in enumerate(products)}
        # The sources of a tensor as the bits of one integer: linear nodes first, then inputs.
        sources = {name: 1 << (len(products) + n) for n, name in enumerate(inputs)}
        self._before = [0] * len(products)
        for node in graph.model.proto.graph.node:
            found = 0
            for name in node.input:
                found |= sources.get(name, 0)
            for name in node.output:
                number = numbers.get(name)
                if number is None:
                    sources[name] = found
                else:
                    self._before[number] = found
                    sources[name] = 1 << number
        self._behind: list[list[Hashable]] = [[] for _ in products]
        for output in graph.model.proto.graph.output:
            for number in _bits(sources.get(output.name, 0)):
                if number < len(products):
                    self._behind[number].append(("output", output.name))

    def labels(self, own: Labels) -> Labels:
        """Every label of `own`, with those of the nodes before and behind."""
        count = len(own)
        before: list[list[Hashable]] = [[] for _ in own]
        behind = [list(labels) for labels in self._behind]
        for number, bits in enumerate(self._before):
            for other in _bits(bits):
                if other < count:
                    before[number].append(own[other])
                    behind[other].append(own[number])
                else:
                    before[number].append(("input", self._inputs[other - count]))
        return [
            (label, frozenset(Counter(first).items()), frozenset(Counter(then).items()))
            for label, first, then in zip(own, before, behind, strict=True)
        ]


def refined(sides: Sequence[tuple[Surroundings, Labels]]) -> list[Labels]:
    """Labels that tell all nodes of several graphs apart that connections tell apart.

    Nodes with one label can have several afterwards, those with several never have one.
    """
    known = [_numbered(labels for _, labels in sides)]
    while True:
        longer = [
            surroundings.labels(labels)
            for (surroundings, _), labels in zip(sides, known[-1], strict=True)
        ]
        known.append(_numbered(longer))
        if _count(known[-1]) == _count(known[-2]):
            return known[-1]


def _numbered(sides: Iterator[Labels] | Sequence[Labels]) -> list[Labels]:
    """The same labels as numbers, which are quick to compare."""
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(label, len(numbers)) for label in labels] for labels in sides]


def _count(sides: Sequence[Labels]) -> int:
    return len({label for labels in sides for label in labels})


def by_label(labels: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    """Names by label, in the order of the names."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name, label in labels.items():
        found[label].append(name)
    return found


def _bits(value: int) -> Iterator[int]:
    while value:
        lowest = value & -value
        yield lowest.bit_length() - 1
        value ^= lowest
