"""The A and B that a tensor comes from, and whether they can be a branch.

    A  ->  [Mul by a scale of 1 or rank values]  ->  B  ->  [Mul by a scale of 1 value]  ->  l

A convolution's A has the kernel, its B is 1 x 1. Neither has a bias, nor a weight that is quantized
or computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_quant.graph.attach.bias import bias_inputs
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.records import FoundScale, ScalePlace
from lora_quant.graph.exported.small_constants import small_values, stored_constant
from lora_quant.graph.exported.walk_up import Step, Walk, Walker
from lora_quant.graph.records import ConvGeometry, Form, LinearNode


@dataclass(frozen=True, eq=False)
class Pair:
    """A and B, with the walks from A to B and from B to l."""

    a: LinearNode
    b: LinearNode
    between: Walk
    behind: Walk


@dataclass(frozen=True, eq=False)
class NearPair:
    """Something like A and B, and why it is no pair. `x` is what the first of them reads.

    `in_features` and `out_features` are 0 where a computed weight does not tell them; `parts` are
    the outputs of both.
    """

    parts: tuple[str, str]
    x: str
    in_features: int
    out_features: int
    reason: str


def pair_behind(tensor: str, walker: Walker, graph: BaseGraph) -> Pair | NearPair | None:
    """What computes `tensor` from an A and a B; None if that is nothing of the kind."""
    behind = walker.up(tensor)
    b = behind.linear
    if b is None:
        return None
    reads_b = b.x if isinstance(b, LinearNode) else graph.index.producers[behind.begin].input[0]
    between = walker.up(reads_b)
    a = between.linear
    if a is None:
        return None
    reads_a = a.x if isinstance(a, LinearNode) else graph.index.producers[between.begin].input[0]
    if isinstance(a, NotLinear):
        reason = f"A {_no_linear(a)}"
    elif isinstance(b, NotLinear):
        reason = f"B {_no_linear(b)}"
    else:
        problems = [*between.problems, *behind.problems]
        found = problems[-1] if problems else _problem(a, b, between, behind, graph)
        if not found:
            return Pair(a, b, between, behind)
        reason = found
    return NearPair(
        (between.begin, behind.begin),
        reads_a,
        a.in_features if isinstance(a, LinearNode) else 0,
        b.out_features if isinstance(b, LinearNode) else 0,
        reason,
    )


def found_scales(pair: Pair) -> tuple[FoundScale, ...]:
    """The Mul nodes of a pair, in graph order."""
    return (
        *_scales(pair.between.steps, ScalePlace.BETWEEN),
        *_scales(pair.behind.steps, ScalePlace.BEHIND),
    )


def plain_geometry(conv: ConvGeometry) -> tuple[object, ...]:
    """Kernel, strides, pads and automatic pads of a convolution, in one spelling.

    A 1 x 1 kernel that takes no steps pads nothing, whatever automatic rule is named.
    """
    none = (0,) * len(conv.pads)
    if set(conv.kernel) == {1} and set(conv.strides) == {1} and conv.pads == none:
        return conv.kernel, conv.strides, none, "NOTSET"
    pads = none if conv.auto_pad == "VALID" else conv.pads
    rule = "NOTSET" if conv.auto_pad == "VALID" else conv.auto_pad
    return conv.kernel, conv.strides, pads, rule


def is_pointwise(linear: LinearNode) -> bool:
    """Whether a linear node works on each position alone."""
    conv = linear.conv
    if conv is None:
        return True
    ones, zeros = (1,) * len(conv.kernel), (0,) * len(conv.pads)
    return plain_geometry(conv) == (ones, ones, zeros, "NOTSET")


def _scales(steps: tuple[Step, ...], place: ScalePlace) -> list[FoundScale]:
    return [
        FoundScale(
            place=place,
            source=step.operand.source,
            operand=step.factor,
            tensor=step.operand.tensor,
            size=step.operand.size,
            output=step.node.output[0],
            expansion="" if step.operand.expanding is None else step.operand.expanding.weight,
        )
        for step in steps
        if step.operand is not None
    ]


def _problem(
    a: LinearNode, b: LinearNode, between: Walk, behind: Walk, graph: BaseGraph
) -> str | None:
    """Why A and B are no branch, None if they may be one."""
    for letter, linear in (("A", a), ("B", b)):
        name = repr(linear.label)
        if linear.is_quantized:
            return (
                f"the weight of {letter} ({name}) is quantized: give the float graph, with its "
                "encodings beside it"
            )
        if linear.input_transposed:
            return f"{letter} ({name}) reads its input transposed (transA)"
        if _has_bias(linear, graph):
            return (
                f"{letter} ({name}) has a bias: a branch is linear; train without a bias, or fold "
                "it into the base's"
            )
    if b.form is Form.EMBEDDING or not is_pointwise(b):
        return f"B ({b.label!r}) does not work on each position alone"
    if a.out_features != b.in_features:
        return f"A gives {a.out_features} features, and B reads {b.in_features}"
    for step in (*between.steps, *behind.steps):
        operand = step.operand
        if operand is None or operand.size == 1:
            continue
        if step in behind.steps:
            return (
                f"what B gives is multiplied by a vector of {operand.size} "
                f"({step.node.name or step.node.output[0]!r}), as DoRA does: expected one value"
            )
        if operand.size != a.out_features:
            return (
                f"what A gives is multiplied by a vector of {operand.size}, expected one value, or "
                f"one for each of the {a.out_features} ranks"
            )
    return None


def _no_linear(found: NotLinear) -> str:
    return f"({found.node or found.op!r}) is no linear node with a constant weight: {found.reason}"


def _has_bias(linear: LinearNode, graph: BaseGraph) -> bool:
    """Whether the node itself adds anything but zeros; what is added behind it is a step."""
    if linear.form is Form.EMBEDDING:
        return False
    node = graph.index.producers[linear.product]
    for tensor, factor in bias_inputs(linear, graph.index):
        if tensor not in node.input or factor == 0.0:
            continue
        stored = stored_constant(tensor, graph.index)
        values = None if stored is None else small_values(stored, graph)
        if values is None or values.any():
            return True
    return False
