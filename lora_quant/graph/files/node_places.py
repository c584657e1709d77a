"""Putting nodes between those of a graph, in one walk.

front: f    behind: {0: [a]}    before: {1: [b]}        n0, n1   ->   f, n0, a, b, n1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from onnx import GraphProto, NodeProto


def place_nodes(
    graph: GraphProto,
    front: Sequence[NodeProto],
    behind: Mapping[int, Sequence[NodeProto]],
    before: Mapping[int, Sequence[NodeProto]] = MappingProxyType({}),
) -> None:
    """Add `front` ahead of all nodes, and the others around nodes by their positions of today.

    The nodes of each are in their order; the graph gets copies of them.
    """
    # Added at the end and sorted into place: protobuf would copy the others to make room.
    nodes = graph.node
    places = [float(position) for position in range(len(nodes))]
    nodes.extend(front)
    places += [-1.0] * len(front)
    for distance, around in ((0.25, behind), (-0.25, before)):
        for position, added in around.items():
            nodes.extend(added)
            places += [position + distance] * len(added)
    keys = iter(places)
    nodes.sort(key=lambda _node: next(keys))
