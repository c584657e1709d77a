"""Finding the branches that an exporter left in a graph, by their structure alone.

    Add(h, l)   h from a linear W that reads x   l from linear A and B, of which A reads x

Every Add is looked at once, in graph order: so a sum that was taken is the h of the next one. Then
what a branch computes must be read by nobody else. Names decide nothing but whether something that
was not taken is reported.
"""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto

from lora_quant.graph.attach.bias import outcome_of
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.bases import BaseOutput
from lora_quant.graph.exported.candidates import Candidate, NearCandidate, candidate_at
from lora_quant.graph.exported.going import Going, Sum
from lora_quant.graph.exported.leftovers import leftovers
from lora_quant.graph.exported.records import ExportedGraph, FoundBranch, FoundPoint, NearBranch
from lora_quant.graph.exported.walk_up import Walker
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.records import LinearNode

_BEHIND = "it is added behind a branch that was not taken"


def recognise_branches(graph: BaseGraph) -> ExportedGraph:
    """Every attach point of `graph` with its branches, and what is nearly a branch.

    Points are in the order of their linear nodes, near branches in that of the nodes that they end
    at. Raises GraphError or InputMissingError for a small constant that cannot be read.
    """
    return _Recogniser(graph).run()


class _Recogniser:
    """Collects branches by base linear, and what is nearly one."""

    def __init__(self, graph: BaseGraph) -> None:
        self._graph = graph
        self._walker = Walker(graph)
        # The base behind each sum so far, those that are broken among them.
        self._sums: dict[str, BaseOutput] = {}
        self._broken: set[str] = set()
        self._points: dict[str, list[Candidate]] = {}
        self._near: dict[str, str] = {}
        self._covered: set[str] = set()

    def run(self) -> ExportedGraph:
        for node in self._graph.model.proto.graph.node:
            if node.op_type == "Add" and node.domain in ("", "ai.onnx"):
                self._look_at(node)
        going = self._going()
        while self._drop_read(going):
            going = self._going()
        index = self._graph.index
        ordered = sorted(self._points.items(), key=lambda item: index.positions[item[0]])
        near = [
            NearBranch(index.producers[y].name or y, self._near[y])
            for y in sorted(self._near, key=index.positions.__getitem__)
        ]
        points = tuple(_point(found, going, index) for _, found in ordered)
        rest = leftovers(self._covered, self._walker, self._graph)
        return ExportedGraph(self._graph, points, (*near, *rest))

    def _look_at(self, add: NodeProto) -> None:
        y = add.output[0]
        found = candidate_at(add, self._sums, self._walker, self._graph)
        if found is None:
            return
        self._sums[y] = replace(found.base, problem="")
        if isinstance(found, NearCandidate):
            self._covered.update(found.parts)
            self._refuse(y, found.reason)
            return
        branch = found.branch
        self._covered.update((branch.a.product, branch.b.product))
        if branch.h in self._broken:
            self._refuse(y, _BEHIND)
            return
        reader = self._other_reader(branch.h, found.base.linear)
        if reader is not None:
            self._refuse(y, f"{reader} is read without the branch as well")
            return
        self._points.setdefault(found.base.linear.product, []).append(found)

    def _refuse(self, y: str, reason: str) -> None:
        self._near[y] = reason
        self._broken.add(y)

    def _other_reader(self, h: str, linear: LinearNode) -> str | None:
        """What of the base's output is read beside the sum, in words; None if nothing is."""
        index = self._graph.index
        for tensor in [h] if h in self._sums else self._walker.sources(h):
            if index.sole_consumer(tensor) is None:
                return f"what the branch is added to, {tensor!r},"
        grid = outcome_of(linear, index).grid
        if grid is not None and grid.others and h not in self._sums:
            return f"the quantized output {grid.codes!r} of the base"
        return None

    def _going(self) -> Going:
        branches = [found.branch for point in self._points.values() for found in point]
        return Going([Sum(one.y, one.h, one.l) for one in branches], self._graph.index)

    def _drop_read(self, going: Going) -> bool:
        """Leave out branches of which something is read elsewhere; whether there were any."""
        dropped = False
        for product, point in list(self._points.items()):
            for place, found in enumerate(point):
                reason = _read_elsewhere(found.branch, going, self._graph.index)
                if reason is None:
                    continue
                self._refuse(found.branch.y, reason)
                for later in point[place + 1 :]:
                    self._refuse(later.branch.y, _BEHIND)
                self._points[product] = point[:place]
                dropped = True
                break
            if not self._points[product]:
                del self._points[product]
        return dropped


def _read_elsewhere(branch: FoundBranch, going: Going, index: GraphIndex) -> str | None:
    """Which tensor of a branch something reads that stays, and what."""
    begin = index.positions[branch.a.product]
    tensors = (branch.a.product, *(scale.output for scale in branch.scales), branch.b.product)
    relaid = [tensor for tensor in branch.relayouts if index.positions[tensor] > begin]
    # The last one tells who reads it; what lies above stays for that reason alone.
    for tensor in sorted((*tensors, *relaid), key=index.positions.__getitem__, reverse=True):
        if not going.holds(tensor):
            reader = going.reader(tensor)
            if reader is not None:
                return f"{tensor!r} belongs to more than the branch: {reader}"
    return None


def _point(found: list[Candidate], going: Going, index: GraphIndex) -> FoundPoint:
    branches = [_complete(one.branch, going, index) for one in found]
    return FoundPoint(found[0].base.linear, branches[0].h, branches[-1].y, tuple(branches))


def _complete(branch: FoundBranch, going: Going, index: GraphIndex) -> FoundBranch:
    """A branch with its nodes: the sum, and what goes with it above l."""
    nodes = {index.positions[branch.y], *going.above([branch.l])}
    return replace(branch, nodes=tuple(sorted(nodes)))
