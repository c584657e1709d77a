"""Putting nodes between those of a graph, in one walk.

front: f    behind: {0: [a]}        n0, n1   ->   f, n0, a, n1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto


def place_nodes(
    graph: GraphProto, front: Sequence[NodeProto], behind: Mapping[int, Sequence[NodeProto]]
) -> None:
    """Add `front` before all nodes, and `behind` after the nodes at these positions of today.

    The nodes of each are in their order; the graph gets copies of them.
    """
    # Added at the end and sorted into place: protobuf would copy the others to make room.
    nodes = graph.node
    places = [float(position) for position in range(len(nodes))]
    nodes.extend(front)
    places += [-1.0] * len(front)
    for position, added in behind.items():
        nodes.extend(added)
        places += [position + 0.5] * len(added)
    keys = iter(places)
    nodes.sort(key=lambda _node: next(keys))
