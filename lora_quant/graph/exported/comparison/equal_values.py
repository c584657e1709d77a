"""Whether branches on nodes that compute equal values are where the base has the same nodes.

    q = x W   k = x W     equal weights: which of the two has a branch, only what reads them tells

Numbers of values cannot tell such nodes apart. So everything that reads what a branch is added to
has to be paired with what reads its partner, and nothing else may read that; and so on behind them,
as long as values repeat.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from lora_quant.errors import GraphError, Where
from lora_quant.graph.exported.comparison.numbering import Numbered
from lora_quant.graph.exported.records import FoundPoint

# first output of a node, or "" for the graph itself, and where it reads
_Reader = tuple[str, int | str]


def check_equal_values(
    base: Numbered,
    exported: Numbered,
    tensors: Mapping[str, str],
    outputs: Sequence[tuple[str, str]],
    points: Sequence[FoundPoint],
) -> None:
    """Raise GraphError for a branch on one of several equal nodes, if nothing tells on which.

    `tensors`: name in the exported graph -> name in the base; `outputs`: the graphs' own.
    """
    repeated = repeated_values(base) | repeated_values(exported)
    doubtful = [
        (point, root)
        for point in points
        for root in {exported.trunk.root(name): None for name in (point.linear.product, point.h)}
        if exported.numbers.get(root) in repeated
    ]
    if not doubtful:
        return
    readers = _readers(exported, [name for name, _ in outputs])
    wanted = _readers(base, [name for _, name in outputs])
    outputs_of = {node.node.first: node.node.outputs for node in exported.nodes}
    seen: set[str] = set()
    for point, root in doubtful:
        pending = [root]
        while pending:
            tensor = pending.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            partner = base.trunk.root(tensors[tensor])
            got = Counter(
                (base.trunk.root(tensors[name]) if name else "", place)
                for name, place in readers[tensor]
            )
            if got != Counter(wanted[partner]):
                raise _undecided(exported, point)
            behind = [output for name, _ in readers[tensor] for output in outputs_of.get(name, ())]
            pending += [name for name in behind if name and exported.number(name) in repeated]


def repeated_values(numbered: Numbered) -> set[int]:
    """The numbers that several nodes of one graph compute."""
    times = Counter(
        numbered.number(name) for node in numbered.nodes for name in node.node.outputs if name
    )
    return {number for number, count in times.items() if count > 1}


def _readers(numbered: Numbered, outputs: Sequence[str]) -> Mapping[str, list[_Reader]]:
    """Root -> what reads it, and where; `outputs` as the other graph has them."""
    found: dict[str, list[_Reader]] = defaultdict(list)
    for node in numbered.nodes:
        for place, name in enumerate(node.node.inputs):
            found[name].append((node.node.first, place))
        for name in node.node.captured.values():
            found[name].append((node.node.first, "inside"))
    for place, name in enumerate(outputs):
        found[numbered.trunk.root(name)].append(("", place))
    return found


def _undecided(exported: Numbered, point: FoundPoint) -> GraphError:
    node = point.linear.node or point.linear.product
    return GraphError(
        f"{node!r} has a branch, and another node of the graph or of the base computes the same "
        "from an equal weight: what reads them does not tell which of them it is",
        where=Where(file=exported.trunk.graph.path, node=node),
        hint="export base and use cases with the same optimizations, without merging equal nodes",
    )
