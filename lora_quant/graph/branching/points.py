"""What the builders of the graph room derive from an attach point: names and axes."""

from __future__ import annotations

from lora_quant.graph.attach.module_names import path_of_node_name
from lora_quant.graph.records import AttachPoint, Form


def node_prefix(point: AttachPoint) -> str:
    """The graph's own slashed spelling of the module where it has one, the dotted path elsewhere.

    Attach points differ in their names, so that their prefixes do.
    """
    node = point.linear.node
    return node.rpartition("/")[0] if path_of_node_name(node) == point.name else f"/{point.name}"


def spatial_axes(point: AttachPoint) -> int:
    """Number of spatial axes of a convolution, 0 for any other form."""
    return len(point.linear.conv.kernel) if point.linear.conv else 0


def channel_axis(point: AttachPoint) -> int:
    """The axis of the features in the activations of a branch."""
    return 1 if point.linear.form is Form.CONV else -1


def point_axes(point: AttachPoint) -> int | None:
    """Number of axes of x and y of a convolution, None where the form leaves it open."""
    return spatial_axes(point) + 2 if point.linear.form is Form.CONV else None


def rank_axis(point: AttachPoint, *, is_a: bool) -> int:
    """The axis of the ranks in A `[in, R]` or B `[R, out]`; a convolution has `[R, in, ...]`."""
    on_first = (point.linear.form is Form.CONV) == is_a
    return 0 if on_first else 1
