"""Giving the branches of a graph rank axes of their own, each as long as a use case needs.

Before                                        After, for each axis n
    s = alpha @ E             for all             s_n = alpha @ E_n
    A [in, parts * R]                             A [in, lora_rank_n]
    B [parts * R, out]                            B [lora_rank_n, out]
    m = tiled s * a                               m = s_n * a

E_n `[slots, lora_rank_n]` is the input `<alpha>.expansion_<n>`, with the ranks of all parts of a
fused projection, so that nothing is tiled. Convolutions read s_n as [1, lora_rank_n, 1, ...], and
gated points have s_n per token. The strengths are always one for each slot. An axis may also have a
fixed length: its tensors then keep numbers for sizes.

The default of an open axis has no ranks, or one of zeros where operators of ONNX Runtime do not
stand an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, ValueInfoProto

from lora_quant.graph.branching.points import channel_axis, rank_axis, spatial_axes
from lora_quant.graph.files.element_types import ELEMENTS
from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.records import Branch, BranchedGraph, Gate, ScaleRecord, TensorRecord

# Unsqueeze reads its axes as an input from here on, as an attribute before.
_AXES_AS_INPUT = 13


@dataclass(frozen=True)
class RankAxis:
    """The rank axis of some attach points, told by their names.

    `width` is its length, None if it is open; `default` is the length of its default values.
    """

    number: int
    points: tuple[str, ...]
    width: int | None = None
    default: int = 0

    @property
    def size(self) -> int | str:
        """The axis as a shape tells it: its length, or the name of an open one."""
        return f"lora_rank_{self.number}" if self.width is None else self.width

    @property
    def default_size(self) -> int:
        """The length that the axis has in default values."""
        return self.default if self.width is None else self.width


def expansion_name(alpha: str, axis: int) -> str:
    """The name of E_n."""
    return f"{alpha}.expansion_{axis}"


def open_ranks(
    graph: OpenGraph, branched: BranchedGraph, axes: Iterable[RankAxis]
) -> Mapping[int, TensorRecord]:
    """Rewire `graph`, a copy of the branched one; returns E_n by the number of the axis.

    Every branch has to be in exactly one axis. Afterwards A and B are initializers of the default
    length without values; alpha and the E_n are inputs with defaults of zero. Raises GraphError if
    a name is taken.
    """
    scale = branched.scale
    if scale is None:
        return {}
    branches = {branch.attach.name: branch for branch in branched.branches}
    _drop_scale(graph, branched, scale)
    _slot_layout(graph, scale, branched.slot_count)
    found: dict[int, TensorRecord] = {}
    for axis in axes:
        name = graph.claim(expansion_name(scale.alpha.name, axis.number))
        zeros = np.zeros((branched.slot_count, axis.default_size), np.float32)
        shape = (branched.slot_count, axis.size)
        found[axis.number] = graph.overridable(name, "float32", shape, zeros)
        builder = _AxisScale(graph, scale, axis, name)
        for point in axis.points:
            _open_branch(graph, branches[point], axis, builder)
        graph.front(builder.nodes)
    return found


class _AxisScale:
    """s_n in each form that the branches of one axis ask for."""

    def __init__(
        self, graph: OpenGraph, scale: ScaleRecord, axis: RankAxis, expansion: str
    ) -> None:
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._scale = scale
        self._number = axis.number
        self._expansion = expansion
        self._made: dict[tuple[str, int, bool], str] = {}

    def tensor(self, dtype: str, axes: int, is_gated: bool) -> str:
        """s_n for convolutions of `axes` spatial axes, 0 for other forms; made on first use."""
        key = (dtype, axes, is_gated)
        if key not in self._made:
            self._made[key] = self._make(dtype, axes, is_gated)
        return self._made[key]

    def _make(self, dtype: str, axes: int, is_gated: bool) -> str:
        graph, gated = self._graph, "_gate" if is_gated else ""
        if dtype != "float32":
            source = self.tensor("float32", axes, is_gated)
            leaf = f"Cast{gated}_{dtype}" + (f"_{axes}d" if axes else "")
            return self._add("Cast", [source], leaf, to=ELEMENTS[dtype])
        if axes:
            source = self.tensor(dtype, 0, is_gated)
            beside = [0, *range(2, axes + 2)]
            if graph.opset < _AXES_AS_INPUT:
                return self._add("Unsqueeze", [source], f"Unsqueeze_{axes}d", axes=beside)
            name = f"{self._scale.alpha.name}.axes_" + "x".join(map(str, beside))
            if name not in graph.initializers:
                graph.constant(graph.claim(name), np.array(beside, np.int64))
            return self._add("Unsqueeze", [source, name], f"Unsqueeze_{axes}d")
        strengths = self._scale.alpha.name
        if is_gated and self._scale.gate is not None:
            strengths = self._add("Mul", [strengths, self._scale.gate.name], "Mul_gate")
        return self._add("MatMul", [strengths, self._expansion], f"MatMul{gated}")

    def _add(self, op: str, inputs: list[str], leaf: str, **attributes: Any) -> str:
        name = f"/{self._scale.alpha.name}/rank_{self._number}/{leaf}"
        return self._graph.node(self.nodes, op, inputs, name, **attributes)


def _drop_scale(graph: OpenGraph, branched: BranchedGraph, scale: ScaleRecord) -> None:
    """Remove what made s, but for the constants that routers read as well."""
    graph.drop(scale.scales)
    if scale.expansion is not None:
        graph.drop([scale.expansion.name])
    read = {
        name
        for branch in branched.branches
        if branch.router is not None
        for tensor in branch.router.tensors
        for name in graph.producers[tensor].input
    }
    graph.drop(name for name in scale.shapes if name not in read)


def _slot_layout(graph: OpenGraph, scale: ScaleRecord, slot_count: int) -> None:
    """alpha as an input of one strength a slot, which are zero by default; the gate likewise."""
    alpha = scale.alpha.name
    graph.overridable(alpha, scale.alpha.dtype, (slot_count,), np.zeros(slot_count, np.float32))
    if scale.gate is not None:
        graph.resize_input(scale.gate.name, -1, slot_count)


def _open_branch(graph: OpenGraph, branch: Branch, axis: RankAxis, scale: _AxisScale) -> None:
    point = branch.attach
    s = scale.tensor(point.linear.dtype, spatial_axes(point), Gate.INPUT in point.gates)
    # m = Mul(a, s); of a router s * q = Mul(s, q).
    reader, place = (branch.m, 1) if branch.router is None else (branch.router.tensors[-1], 0)
    graph.producers[reader].input[place] = s
    for weight, is_a in ((branch.a_weight, True), (branch.b_weight, False)):
        shape = list(weight.shape)
        shape[rank_axis(point, is_a=is_a)] = axis.default_size
        graph.reshape(TensorRecord(weight.name, tuple(shape), weight.dtype))
    for tensor in (branch.a, branch.m):
        value = graph.values.get(tensor)
        if value is not None:
            _set_size(value, channel_axis(point), axis.size)


def _set_size(value: ValueInfoProto, axis: int, size: int | str) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    if isinstance(size, int):
        dim.dim_value = size
    else:
        dim.dim_param = size
