"""The nodes that go when branches are taken out: theirs, and what then gives nothing to anybody.

    the sums of branches  ->  all nodes above them that only such nodes read  ->  ...

A sum's h stays: it takes the place of y.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.files.graph_index import GraphIndex


@dataclass(frozen=True)
class Sum:
    """y = h + l, by a node that gives y."""

    y: str
    h: str
    l: str  # noqa: E741  (the field's letter for the branch's contribution)


class Going:
    """What goes with some sums."""

    def __init__(self, sums: Iterable[Sum], index: GraphIndex) -> None:
        self._index = index
        taken = list(sums)
        self._sums = {index.positions[one.y] for one in taken}
        self._positions = set(self._sums)
        self._stays = {one.h for one in taken}
        pending = [one.l for one in taken]
        while pending:
            tensor = pending.pop()
            position = index.positions.get(tensor)
            if position is None or position in self._positions:
                continue
            node = index.producers[tensor]
            if all(self._is_unread(output) for output in node.output if output):
                self._positions.add(position)
                pending += _read_by(node)

    def holds(self, tensor: str) -> bool:
        """Whether the node that gives `tensor` goes."""
        return self._index.positions.get(tensor) in self._positions

    def reader(self, tensor: str) -> str | None:
        """Who reads `tensor` and stays, None if nobody does."""
        index = self._index
        if tensor in index.outputs:
            return "the graph gives it as an output"
        if tensor in index.captured:
            return "a subgraph reads it"
        for node in index.consumers.get(tensor, []):
            given = next((output for output in node.output if output), "")
            if index.positions.get(given) not in self._positions or not given:
                return f"{node.name or given!r} ({node.op_type}) reads it"
        return None

    def above(self, tensors: Iterable[str]) -> set[int]:
        """Positions of the nodes that go among those that `tensors` come from, but for sums."""
        found: set[int] = set()
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            position = self._index.positions.get(tensor)
            if position is None or position in found or position in self._sums:
                continue
            if position in self._positions:
                found.add(position)
                pending += _read_by(self._index.producers[tensor])
        return found

    def _is_unread(self, tensor: str) -> bool:
        return tensor not in self._stays and self.reader(tensor) is None


def _read_by(node: NodeProto) -> list[str]:
    return [tensor for tensor in node.input if tensor]
