"""What each linear node reads and gives, as the tensors that may carry the grid of each.

    Reshape -> MatMul(r, W) -> Add(bias) -> Relu
    reads (r, x before the Reshape), (W,)    bias    gives (product, sum, result of the Relu)

A grid passes through nodes that only move or cast values, and the bias and the Relu behind a
product are computed with it in one step. What a QuantizeLinear or DequantizeLinear gives has a grid
in the graph itself and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

_LINEAR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_ENDS = frozenset({"Relu", "Clip"})
_MOVES = frozenset(
    {
        "Cast",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_IN_GRAPH = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LONGEST = 16  # nodes of a chain that are followed: exporters write two or three


@dataclass(frozen=True)
class LinearFact:
    """One node of the operators MatMul, Gemm, Conv, ConvTranspose.

    reads: for the operand and the factor, the tensors of which one has its grid; () if the graph
    has the grid itself. gives: likewise for the result. bias: the stored tensor that is added,
    with the node or in an Add behind it; None if there is none.
    """

    node: str
    op: str
    reads: tuple[tuple[str, ...], tuple[str, ...]]
    gives: tuple[str, ...]
    bias: str | None = None


def linear_facts(
    graph: GraphProto, producers: Mapping[str, NodeProto], stored: frozenset[str]
) -> tuple[LinearFact, ...]:
    """The linear nodes of the top-level graph in its order; linear in the nodes.

    producers: tensor -> node. stored: names of initializers and of what Constant nodes hold.
    """
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in set(node.input):
            readers[name].append(node)
    ends = {value.name for value in graph.output}
    return tuple(
        _fact(node, producers, readers, stored, ends)
        for node in graph.node
        if node.op_type in _LINEAR
        and node.domain in ("", "ai.onnx")
        and len(node.input) >= 2
        and node.output
    )


def _fact(
    node: NodeProto,
    producers: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    stored: frozenset[str],
    ends: set[str],
) -> LinearFact:
    bias = node.input[2] if len(node.input) > 2 and node.input[2] in stored else None
    gives = [node.output[0]]
    added = _follow(gives, readers, ends, _MOVES)
    if bias is None and added is not None and added.op_type == "Add":
        others = [name for name in added.input if name in stored]
        if len(others) == 1:
            bias = others[0]
            gives.append(added.output[0])
            added = _follow(gives, readers, ends, _MOVES)
    if added is not None and added.op_type in _ENDS:
        gives.append(added.output[0])
        added = _follow(gives, readers, ends, _MOVES)
    in_graph = added is not None and added.op_type in _IN_GRAPH
    return LinearFact(
        node=node.name or node.output[0],
        op=node.op_type,
        reads=(_sources(node.input[0], producers), _sources(node.input[1], producers)),
        gives=() if in_graph else tuple(gives),
        bias=bias,
    )


def _follow(
    gives: list[str],
    readers: Mapping[str, list[NodeProto]],
    ends: set[str],
    through: frozenset[str],
) -> NodeProto | None:
    """Append what the only reader of the last tensor moves it to; the reader behind that."""
    for _ in range(_LONGEST):
        users = readers.get(gives[-1], [])
        if len(users) != 1 or gives[-1] in ends:
            return None
        if users[0].op_type not in through or not users[0].output:
            return users[0]
        gives.append(users[0].output[0])
    return None


def _sources(tensor: str, producers: Mapping[str, NodeProto]) -> tuple[str, ...]:
    found = [tensor]
    for _ in range(_LONGEST):
        node = producers.get(found[-1])
        if node is None or not node.input:
            break
        if node.op_type in _IN_GRAPH:
            return ()
        if node.op_type not in _MOVES:
            break
        found.append(node.input[0])
    return tuple(found)
