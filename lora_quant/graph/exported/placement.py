"""Whether a branch adds its features where the base has them, position by position.

x  ->  [layout]  ->  W          ->  [layout]  ->  h
x  ->  [layout]  ->  A, Mul, B  ->  [layout]  ->  l        every axis of l is that of h
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import NodeProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.pairs import is_pointwise
from lora_quant.graph.exported.relayouts import Axis, Layout, Misfit, layout_of, relaid, sizes_of
from lora_quant.graph.exported.scales import ScaleOperand
from lora_quant.graph.records import Form, LinearNode

Way = Sequence[NodeProto | LinearNode | ScaleOperand]

_MOST_AXES = 6
_FEATURE = -1


def misplaced(x: str, base: Way, branch: Way, graph: BaseGraph) -> str | None:
    """Why what a branch gives does not lie where the base's features do, None if it does.

    `base` are the nodes from x to h, `branch` those from x to l, in graph order: changes of layout,
    linear nodes, and what scales.
    """
    told = sizes_of(x, graph)
    tried = [[None] * count for count in range(1, _MOST_AXES + 1)] if told is None else [told]
    fits = False
    doubt = ""
    for sizes in tried:
        try:
            _compare(layout_of(sizes), base, branch, graph)
        except Misfit as misfit:
            if misfit.is_certain or told is not None:
                doubt = doubt or misfit.reason
            continue
        fits = True
    if fits and not doubt:
        return None
    if fits:
        return f"whether it fits depends on the shape of {x!r}, which the graph does not tell"
    return doubt or f"its changes of layout fit no number of axes of {x!r}"


def _compare(x: Layout, base: Way, branch: Way, graph: BaseGraph) -> None:
    """Raises Misfit."""
    base_in, read, h = _follow(x, base, (), graph)
    linear = next(node for node in base if isinstance(node, LinearNode))
    branch_in, read_by_a, l_ = _follow(_with_size(x, read, linear), branch, read, graph)
    if read_by_a != read:
        raise Misfit("A works along another axis than the base")
    same_axes = [a.origins for a in base_in.axes] == [a.origins for a in branch_in.axes]
    if not is_pointwise(linear) and not same_axes:
        raise Misfit("A reads another layout than the base, whose kernel covers several positions")
    ones = h.ones | l_.ones
    h, l_ = replace(h, ones=ones), replace(l_, ones=ones)
    here, there = _feature_axis(h), _feature_axis(l_)
    if here is None or there is None:
        raise Misfit("the axis of its features is squeezed away")
    if h.is_open or l_.is_open or any(len(axis.origins) > 1 for axis in (*h.axes, *l_.axes)):
        # A Reshape leaves the order; the sum being valid, equal order means equal axes.
        same = h.held(h.axes[:here]) == l_.held(l_.axes[:there])
        same = same and h.held(h.axes[here:]) == l_.held(l_.axes[there:])
        same = same and len(h.axes) - here == len(l_.axes) - there
    else:
        same = [h.held([axis]) for axis in h.axes] == [l_.held([axis]) for axis in l_.axes]
    if not same:
        raise Misfit("its layout is not that of the base's output, so that it adds up elsewhere")


def _feature_axis(layout: Layout) -> int | None:
    found = (i for i, axis in enumerate(layout.axes) if axis.origins == (_FEATURE,))
    return next(found, None)


def _with_size(x: Layout, read: tuple[int, ...], linear: LinearNode) -> Layout:
    """x with the size of the axis that the base reads, which its weight tells."""
    axes = [
        replace(axis, size=linear.in_features) if axis.origins == read else axis for axis in x.axes
    ]
    return replace(x, axes=tuple(axes))


def _follow(
    layout: Layout, way: Way, feature: tuple[int, ...], graph: BaseGraph
) -> tuple[Layout, tuple[int, ...], Layout]:
    """What the first linear node reads, along which axes of x, and the layout at the end.

    `feature` are the axes of x that it will read, if they are known.
    """
    first: Layout | None = None
    read: tuple[int, ...] = ()
    for node in way:
        if isinstance(node, NodeProto):
            layout = relaid(layout, node, feature, graph)
        elif isinstance(node, ScaleOperand):
            _scale(layout, node)
        else:
            if node.input_transposed:
                layout = replace(layout, axes=layout.axes[::-1])
            axis = _axis_of(node, layout)
            if first is None:
                first = layout
                read = () if node.form is Form.EMBEDDING else layout.axes[axis].origins
            elif layout.axes[axis].origins != feature:
                raise Misfit("B works along another axis than the one that A gives")
            layout = _applied(layout, axis, node)
            feature = (_FEATURE,)
    if first is None:
        raise Misfit("it holds no linear node")
    return first, read, layout


def _axis_of(linear: LinearNode, layout: Layout) -> int:
    """The place of the features in what a linear node reads, or gives for an embedding."""
    count = len(layout.axes)
    if linear.form is Form.EMBEDDING:
        return count
    if linear.conv is not None and layout.is_open:
        raise Misfit("a convolution follows a Reshape whose sizes are not told")
    expected = max(count, 1)
    if linear.conv is not None:
        expected = len(linear.conv.kernel) + 2
    elif linear.op == "Gemm" and not layout.is_open:
        expected = 2
    if count != expected:
        raise Misfit(f"{linear.op} reads {count} axes", is_certain=False)
    return 1 if linear.conv is not None else count - 1


def _applied(layout: Layout, axis: int, linear: LinearNode) -> Layout:
    axes = list(layout.axes)
    made = Axis((_FEATURE,), linear.out_features)
    if linear.form is Form.EMBEDDING:
        return replace(layout, axes=(*axes, made))
    axes[axis] = made
    if not is_pointwise(linear):
        axes[2:] = [replace(other, size=None) for other in axes[2:]]
    return replace(layout, axes=tuple(axes))


def _scale(layout: Layout, operand: ScaleOperand) -> None:
    """Raises Misfit for a scale that multiplies along another axis than that of the ranks."""
    count = len(layout.axes)
    if operand.axes > count and not layout.is_open:
        raise Misfit(f"the scale has {operand.axes} axes", is_certain=False)
    if operand.size != 1:
        place = count - 1 - operand.behind
        if place < 0 or layout.axes[place].origins != (_FEATURE,):
            raise Misfit("a scale of one value per rank lies along another axis than the ranks")
