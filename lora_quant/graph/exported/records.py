"""What is found in a graph that was exported with its LoRA branches inside.

    x ---> A ---> [Mul] ---> B ---> [Mul] ---> l
    |                                          |
    `---> W ---> [bias] ---> h -------------- Add ---> y

Several adapters are chained (y of one is h of the next), or share one branch with their ranks side
by side. Nothing here tells which rank belongs to which adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import LinearNode


class ScalePlace(Enum):
    """Where a branch is scaled: between A and B, or behind B."""

    BETWEEN = "between"
    BEHIND = "behind"


class ScaleSource(Enum):
    """What a branch is scaled by.

    CONSTANT: values in the file. INPUT: a graph input, which may have a default. EXPANDED: a graph
    input `[slots]` times a constant matrix `[slots, ranks]`.
    """

    CONSTANT = "constant"
    INPUT = "input"
    EXPANDED = "expanded"


@dataclass(frozen=True)
class FoundScale:
    """One Mul of a branch.

    `operand` is the tensor that the Mul reads, `output` what it gives. `tensor` holds the values
    (an initializer or the output of a Constant), or is the graph input that they come from;
    `expansion` is the matrix of EXPANDED, else "". Between them lie only Identity, Cast and changes
    of layout. `size`: 1, or the rank of the branch.
    """

    place: ScalePlace
    source: ScaleSource
    operand: str
    tensor: str
    size: int
    output: str
    expansion: str = ""


@dataclass(frozen=True)
class FoundBranch:
    """y = h + l, l = B (s * (A x)): one A and one B, as they are stored.

    `a` and `b` are the nodes of A and B: `a.out_features` and `b.in_features` are the rank;
    `a.product` is A x. `x` is what A and the base read, before any change of layout or type that
    the branch alone makes; `h` what the sum adds to. `relayouts` are the tensors in between that
    are another layout or type of one of these, in graph order. `nodes` are the positions of the
    nodes that go with the branch, the Add among them; what several branches share is in each.
    """

    a: LinearNode
    b: LinearNode
    scales: tuple[FoundScale, ...]
    x: str
    h: str
    l: str  # noqa: E741  (the field's letter for the branch's contribution)
    y: str
    relayouts: tuple[str, ...]
    nodes: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of ranks of this branch, those of padding included."""
        return self.a.out_features

    @property
    def m(self) -> str:
        """What B reads, as s * (A x): A x itself where nothing lies between A and B."""
        between = [s.output for s in self.scales if s.place is ScalePlace.BETWEEN]
        return between[-1] if between else self.a.product


@dataclass(frozen=True)
class FoundPoint:
    """An attach point with its branches, in the order in which they are added.

    `linear` is the base's own node, `h` what it gives with its bias (and its Q/DQ pair), and `y`
    the last sum: without the branches, `h` takes the place of `y`.
    """

    linear: LinearNode
    h: str
    y: str
    branches: tuple[FoundBranch, ...]


@dataclass(frozen=True)
class NearBranch:
    """What looks like a branch and was not taken as one.

    `node` is the name, or else the output, of the node that it ends or breaks at.
    """

    node: str
    reason: str


@dataclass(frozen=True, eq=False)
class ExportedGraph:
    """An opened graph, its attach points in graph order, and what is nearly a branch."""

    graph: BaseGraph
    points: tuple[FoundPoint, ...]
    near: tuple[NearBranch, ...]


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Which tensors of the base are which of an exported graph, its branches left out.

    `tensors`: name in the exported graph -> name in the base, for every tensor that both have,
    weights, inputs and outputs among them; h of a point for what the base calls by that name or by
    that of y. `same`: another tensor of the exported graph -> the one that has its values, as y has
    those of a Cast to its own type. `left_out` is what the base has no counterpart of: tensors of
    branches, and those that no output needs. `shared_bytes` of the weights lie in one file of both,
    at one place; `compared_bytes` were read and found equal.
    """

    tensors: Mapping[str, str]
    same: Mapping[str, str]
    left_out: frozenset[str]
    shared_bytes: int
    compared_bytes: int
