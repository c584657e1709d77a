"""Following the axes of x through changes of layout, to see whether a branch adds up in place.

    x [N, T, C]  Transpose  [N, C, T]  Unsqueeze  [N, C, T, 1]  A, B (Conv)  ...  l [N, T, O]

Every axis holds the axes of x that it came from, in row-major order; one of size 1 may hold none.
The number of axes is tried out where the graph does not tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.small_constants import integers_of
from lora_quant.graph.files.node_attributes import attributes

# What gives the values that it reads: in another type, or just the same.
SAME_LAYOUT = frozenset({"Identity", "Cast", "Dropout"})
RELAYOUTS = SAME_LAYOUT | {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Axis:
    """The axes of x in one axis of a tensor, and its size, None if it is not known."""

    origins: tuple[int, ...]
    size: int | None = None


@dataclass(frozen=True)
class Layout:
    """The axes of a tensor. `ones` are the axes of x that have size 1.

    With `is_open`, the first axis stands for any number of axes: a Reshape split or merged what it
    holds in a way that is not told, without changing its order.
    """

    axes: tuple[Axis, ...]
    ones: frozenset[int] = frozenset()
    is_open: bool = False

    def held(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        """The axes of x in some axes, but for those of size 1."""
        return tuple(o for axis in axes for o in axis.origins if o not in self.ones)


class Misfit(Exception):
    """Why a layout does not fit. `is_certain` is False if the number of axes may be the reason."""

    def __init__(self, reason: str, *, is_certain: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_certain = is_certain


def is_relayout(node: NodeProto) -> bool:
    """Whether a node gives what it reads, in another layout or type at most."""
    return node.op_type in RELAYOUTS and node.domain in ("", "ai.onnx")


def layout_of(sizes: Sequence[int | None]) -> Layout:
    """The layout of x itself."""
    axes = tuple(Axis((number,), size) for number, size in enumerate(sizes))
    return Layout(axes, frozenset(n for n, size in enumerate(sizes) if size == 1))


def sizes_of(tensor: str, graph: BaseGraph) -> list[int | None] | None:
    """The sizes that the graph tells of a tensor, None if it does not even tell their number."""
    value = graph.index.values.get(tensor)
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    ]


def relaid(layout: Layout, node: NodeProto, feature: tuple[int, ...], graph: BaseGraph) -> Layout:
    """The layout behind a node; `feature` are the axes of x that a Reshape has to leave alone.

    Raises Misfit.
    """
    if node.op_type in SAME_LAYOUT:
        return layout
    if node.op_type == "Reshape":
        return _reshaped(layout, node, feature, graph)
    if node.op_type == "Transpose":
        return _transposed(layout, node)
    axes = integers_of(node, 1, "axes", graph)
    if axes is None:
        raise Misfit(f"the axes of {node.op_type} {_name(node)} are not constant")
    count = len(layout.axes) + (len(axes) if node.op_type == "Unsqueeze" else 0)
    if not all(-count <= axis < count for axis in axes):
        raise _too_few(node)
    places = sorted({axis % count for axis in axes})
    if layout.is_open and places:
        raise Misfit(f"{node.op_type} {_name(node)} follows a Reshape whose sizes are not told")
    kept = list(layout.axes)
    if node.op_type == "Unsqueeze":
        for place in places:
            kept.insert(place, Axis((), 1))
        return replace(layout, axes=tuple(kept))
    ones = {origin for place in places for origin in kept[place].origins}
    rest = tuple(axis for place, axis in enumerate(kept) if place not in places)
    return replace(layout, axes=rest, ones=layout.ones | ones)


def _transposed(layout: Layout, node: NodeProto) -> Layout:
    count = len(layout.axes)
    permutation = attributes(node).get("perm", list(reversed(range(count))))
    if layout.is_open:
        raise Misfit(f"Transpose {_name(node)} follows a Reshape whose sizes are not told")
    if sorted(permutation) != list(range(count)):
        raise _too_few(node)
    return replace(layout, axes=tuple(layout.axes[place] for place in permutation))


def _reshaped(
    layout: Layout, node: NodeProto, feature: tuple[int, ...], graph: BaseGraph
) -> Layout:
    """The feature axis stays whole; what lies before and behind it may be split or merged."""
    axes = list(layout.axes)
    if not axes:
        raise _too_few(node)
    here = next((i for i, axis in enumerate(axes) if feature and axis.origins == feature), -1)
    here %= len(axes)
    target = _target(axes, node, graph)
    is_last = here == len(axes) - 1
    if target is None:
        if not is_last:
            raise Misfit(f"the sizes of Reshape {_name(node)} are not told")
        return replace(layout, axes=(_merged(axes[:here]), axes[here]), is_open=True)
    if is_last and target and target[-1].size in (axes[here].size, None):
        front = _regrouped(axes[:here], target[:-1])
        if front is None:
            return replace(layout, axes=(_merged(axes[:here]), axes[here]), is_open=True)
        return replace(layout, axes=(*front, axes[here]), is_open=False)
    if layout.is_open:
        raise Misfit(f"Reshape {_name(node)} follows one whose sizes are not told")
    for place, axis in enumerate(target):
        if axis.size is None or axis.size != axes[here].size:
            continue
        before = (axes[:here], target[:place])
        behind = (axes[here + 1 :], target[place + 1 :])
        # The sizes on one side being the same, those on the other have the same product.
        if _is_same(*before) or _is_same(*behind):
            front, back = _regrouped(*before), _regrouped(*behind)
            if front is not None and back is not None:
                return replace(layout, axes=(*front, axes[here], *back))
    raise Misfit(f"Reshape {_name(node)} does not leave the features in an axis of their own")


def _target(axes: list[Axis], node: NodeProto, graph: BaseGraph) -> list[Axis] | None:
    """The axes that a Reshape makes; one that it copies holds what it holds before."""
    given = integers_of(node, 1, "shape", graph)
    if given is None:
        sizes = sizes_of(node.output[0], graph)
        return None if sizes is None else [Axis((), size) for size in sizes]
    if attributes(node).get("allowzero", 0) == 0 and any(
        size == 0 and place >= len(axes) for place, size in enumerate(given)
    ):
        raise _too_few(node)
    return [
        axes[place] if size == 0 else Axis((), size if size > 0 else None)
        for place, size in enumerate(given)
    ]


def _wide(axes: Sequence[Axis]) -> list[Axis]:
    return [axis for axis in axes if axis.size != 1]


def _is_same(old: Sequence[Axis], new: Sequence[Axis]) -> bool:
    """Whether axes certainly have the same sizes, but for axes of size 1."""
    first, second = _wide(old), _wide(new)
    return len(first) == len(second) and all(
        a == b or (a.size is not None and a.size == b.size)
        for a, b in zip(first, second, strict=True)
    )


def _regrouped(old: Sequence[Axis], new: Sequence[Axis]) -> list[Axis] | None:
    """What new axes hold, with the product and the order of the old ones; None if not told."""
    wide = _wide(new)
    if _is_same(old, new):
        held = iter(_wide(old))
        return [axis if axis.size == 1 else next(held) for axis in new]
    if len(wide) > 1:
        return None
    merged = _merged(old)
    if not wide:
        # All are of size 1, and so are the old ones.
        return [Axis((), 1) for _ in new] if not merged.origins else None
    return [Axis((), 1) if axis.size == 1 else replace(merged, size=axis.size) for axis in new]


def _merged(axes: Sequence[Axis]) -> Axis:
    return Axis(tuple(origin for axis in axes for origin in axis.origins))


def _too_few(node: NodeProto) -> Misfit:
    reason = f"{node.op_type} {_name(node)} does not fit the number of axes"
    return Misfit(reason, is_certain=False)


def _name(node: NodeProto) -> str:
    return repr(node.name or node.output[0])
