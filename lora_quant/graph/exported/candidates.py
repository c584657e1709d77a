"""What a sum is: a branch on a base linear, nearly one, or an ordinary part of the network.

y = h + l      l from an A and a B that read what the linear behind h reads, of its sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.bases import BaseOutput, base_behind
from lora_quant.graph.exported.pairs import (
    NearPair,
    Pair,
    found_scales,
    is_pointwise,
    pair_behind,
    plain_geometry,
)
from lora_quant.graph.exported.placement import misplaced
from lora_quant.graph.exported.records import FoundBranch
from lora_quant.graph.exported.relayouts import is_relayout
from lora_quant.graph.exported.scales import ScaleOperand
from lora_quant.graph.exported.walk_up import Walk, Walker
from lora_quant.graph.records import Form, LinearNode


@dataclass(frozen=True, eq=False)
class Candidate:
    """A branch by its own structure, and the base that it adds to. Its `nodes` are not known."""

    base: BaseOutput
    branch: FoundBranch


@dataclass(frozen=True, eq=False)
class NearCandidate:
    """Why a sum is no branch; `parts` are the outputs of the linear nodes that it looked at."""

    reason: str
    base: BaseOutput
    parts: tuple[str, ...]


def candidate_at(
    add: NodeProto, sums: Mapping[str, BaseOutput], walker: Walker, graph: BaseGraph
) -> Candidate | NearCandidate | None:
    """What an Add is; `sums` has the base behind every sum that was looked at before."""
    near: NearCandidate | None = None
    first, second = add.input
    for h, l_ in ((first, second), (second, first)):
        found = _with_base(add.output[0], h, l_, sums, walker, graph)
        if isinstance(found, Candidate):
            return found
        near = near or found
    return near


def _with_base(
    y: str, h: str, l_: str, sums: Mapping[str, BaseOutput], walker: Walker, graph: BaseGraph
) -> Candidate | NearCandidate | None:
    pair = pair_behind(l_, walker, graph)
    if pair is None:
        return None
    base = sums[h] if h in sums else base_behind(h, walker, graph)
    if base is None:
        return None
    linear = base.linear
    reads = pair.x if isinstance(pair, NearPair) else pair.a.x
    x = _common(reads, linear.x, walker)
    if isinstance(pair, NearPair):
        fits = pair.in_features in (0, linear.in_features) and pair.out_features in (
            0,
            linear.out_features,
        )
        if x is None or not fits:
            return None
        return NearCandidate(pair.reason, base, pair.parts)
    parts = (pair.a.product, pair.b.product)
    if x is None:
        reason = _other_x(pair, linear, walker)
        return None if reason is None else NearCandidate(reason, base, parts)
    problem = base.problem or _sizes_problem(pair, linear)
    if not problem:
        problem = _layout_problem(x, pair, base, walker, graph) or ""
    if problem:
        return NearCandidate(problem, base, parts)
    return Candidate(
        base,
        FoundBranch(
            a=pair.a,
            b=pair.b,
            scales=found_scales(pair),
            x=x,
            h=h,
            l=l_,
            y=y,
            relayouts=tuple(node.output[0] for node in _relayouts(x, pair, walker, graph)),
            nodes=(),
        ),
    )


def _common(one: str, other: str, walker: Walker) -> str | None:
    """The last tensor of which two are only other layouts or types."""
    others = set(walker.sources(other))
    return next((tensor for tensor in walker.sources(one) if tensor in others), None)


def _other_x(pair: Pair, linear: LinearNode, walker: Walker) -> str | None:
    """What A and B are added to instead of a base that reads what A reads.

    None for an ordinary part of a network: sizes that are not those of a branch.
    """
    below = walker.up(linear.x)
    if isinstance(below.linear, LinearNode) and _common(pair.a.x, below.linear.x, walker):
        return (
            "it is added to another pair of linear nodes that reads the same: which of the two is "
            "the base's is not told. Add one branch after the other to the base's output"
        )
    low = pair.b.in_features < min(pair.a.in_features, pair.b.out_features)
    fits = (pair.a.in_features, pair.b.out_features) == (linear.in_features, linear.out_features)
    if not (low and fits):
        return None
    others = set(walker.sources(linear.x))
    walk = walker.up(pair.a.x)
    passed = [tensor for step in walk.steps for tensor in step.node.input]
    if others.intersection(passed):
        ops = ", ".join(s.node.op_type for s in walk.steps if not is_relayout(s.node))
        return f"A reads what {ops} makes of what the base reads, expected the same tensor"
    return f"A reads {pair.a.x!r}, and the base ({linear.label!r}) {linear.x!r}: expected the same"


def _sizes_problem(pair: Pair, linear: LinearNode) -> str:
    a, b = pair.a, pair.b
    if (a.in_features, b.out_features) != (linear.in_features, linear.out_features):
        return (
            f"A and B go from {a.in_features} to {b.out_features} features, and the base "
            f"({linear.label!r}) from {linear.in_features} to {linear.out_features}"
        )
    if (a.form is Form.EMBEDDING) != (linear.form is Form.EMBEDDING):
        return "one of A and the base looks rows up, and the other does not"
    if a.conv is not None and linear.conv is not None:
        if plain_geometry(a.conv) != plain_geometry(linear.conv):
            return "A is a convolution of another kernel, stride or padding than the base"
    elif not (is_pointwise(a) and is_pointwise(linear)):
        return "one of A and the base has a kernel of several positions, and the other has none"
    if a.conv is not None and a.conv.groups != 1:
        return f"A is a convolution of {a.conv.groups} groups, expected one that reads all channels"
    groups = linear.conv.groups if linear.conv is not None else 1
    if b.conv is not None and b.conv.groups not in (1, groups):
        return f"B is a convolution of {b.conv.groups} groups, expected 1 or the base's {groups}"
    return ""


def _layout_problem(
    x: str, pair: Pair, base: BaseOutput, walker: Walker, graph: BaseGraph
) -> str | None:
    to_base = _down(x, base.linear.x, walker, graph)
    to_a = _down(x, pair.a.x, walker, graph)
    return misplaced(
        x,
        [*to_base, base.linear, *base.relayouts],
        [*to_a, pair.a, *_way(pair.between), pair.b, *_way(pair.behind)],
        graph,
    )


def _way(walk: Walk) -> list[NodeProto | ScaleOperand]:
    return [step.node if step.operand is None else step.operand for step in walk.steps]


def _down(x: str, tensor: str, walker: Walker, graph: BaseGraph) -> list[NodeProto]:
    """The changes of layout and type from `x` to `tensor`, in graph order."""
    sources = walker.sources(tensor)
    return [graph.index.producers[name] for name in reversed(sources[: sources.index(x)])]


def _relayouts(x: str, pair: Pair, walker: Walker, graph: BaseGraph) -> list[NodeProto]:
    steps = (*pair.between.steps, *pair.behind.steps)
    return [
        *_down(x, pair.a.x, walker, graph),
        *(step.node for step in steps if step.operand is None),
    ]
