"""Adding the LoRA branches of a common max rank R to a graph, and vectors, in place.

Before                       After
    y = W x  (+ bias)            h = W x  (+ bias)          renamed, otherwise as it was
                                 a = A x
                                 m = s * a
                                 l = B m
                                 y = h + l                  the old name: consumers stay valid

MatMul form: A [in, parts * R], s [parts * R], B [parts * R, out]. Conv form: A [parts * R, in,
*kernel], s [1, parts * R, 1, 1], B [out, parts * R, 1, 1]. Embedding form: A [vocabulary, R], of
which a Gather takes rows, B [R, out]. A and B are initialised with zeros and the graph input alpha
scales every branch, so that the graph computes the base until weights of a use case replace them.
Vectors are in vectors.py, gates in gates.py and router.py, what a quantized base gets in
requantize.py. Nothing else of the graph is touched.

A grouped convolution has the same branch: A reads all channels, and B is dense. Its groups are in
B's values, which are zero outside of the blocks that connect group j of an adapter's ranks to group
j of the outputs. A grouped B would want the ranks of all slots interleaved by group, in an order
that differs from point to point, while one s serves all points; the zeros cost R * out products
per position instead of R * out / groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from onnx import NodeProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.branching.gates import check_gates, gate_sizes
from lora_quant.graph.branching.points import channel_axis, node_prefix, point_axes, spatial_axes
from lora_quant.graph.branching.requantize import plan_requantized, sum_name
from lora_quant.graph.branching.router import plan_router
from lora_quant.graph.branching.scale import ScaleBuilder
from lora_quant.graph.branching.vectors import plan_input_vector, plan_output_vectors
from lora_quant.graph.records import (
    AttachPoint,
    Branch,
    BranchedGraph,
    Form,
    Gate,
    ReplacedParameter,
    TensorRecord,
    Vector,
    VectorTensors,
)

AlphaLayout = Literal["slot", "rank"]
_OPERATORS = {
    Form.MATMUL: ("MatMul", "MatMul"),
    Form.CONV: ("Conv", "Conv"),
    Form.EMBEDDING: ("Gather", "MatMul"),
}


def add_branches(
    base: BaseGraph,
    points: Iterable[AttachPoint],
    *,
    max_rank: int,
    slot_count: int,
    alpha_name: str,
    alpha_layout: AlphaLayout,
    experts: int = 0,
    replaced: Iterable[ReplacedParameter] = (),
) -> BranchedGraph:
    """Edit the graph of `base` in place and return the records of what was added.

    `max_rank` is R, `slot_count` the largest number of adapters in a use case, `experts` that of
    every router. Points are in graph order; without any of low rank there is no alpha input.
    `replaced` are parameters of the base that use cases replace: they stay as they are. Raises
    GraphError if a name that the branches need is taken, or if a point cannot have its vectors or
    gates.
    """
    points = tuple(points)
    edit = GraphEdit(base)
    low_rank = [point for point in points if point.low_rank]
    scale = None
    if low_rank:
        scale = ScaleBuilder(
            edit,
            alpha_name=alpha_name,
            layout=alpha_layout,
            max_rank=max_rank,
            slot_count=slot_count,
            conv_ranks=frozenset(spatial_axes(p) for p in low_rank if p.linear.form is Form.CONV),
            only_conv=all(p.linear.form is Form.CONV for p in low_rank),
            gate_sizes=gate_sizes(edit, low_rank),
        )
    planner = _Planner(edit, scale, max_rank, slot_count, experts)
    for point in points:
        planner.plan(point)
    record = scale.finish() if scale is not None else None
    edit.apply()
    return BranchedGraph(
        points=points,
        branches=tuple(planner.branches),
        scale=record,
        max_rank=max_rank,
        slot_count=slot_count,
        vectors=tuple(planner.vectors),
        replaced=tuple(replaced),
    )


class _Planner:
    """Names and describes what attach points get, one after the other."""

    def __init__(
        self,
        edit: GraphEdit,
        scale: ScaleBuilder | None,
        max_rank: int,
        slot_count: int,
        experts: int,
    ) -> None:
        self.branches: list[Branch] = []
        self.vectors: list[VectorTensors] = []
        self._edit = edit
        self._scale = scale
        self._max_rank = max_rank
        self._slot_count = slot_count
        self._experts = experts

    def plan(self, point: AttachPoint) -> None:
        """The vectors and the branch of one attach point."""
        edit = self._edit
        self.vectors += plan_input_vector(edit, point)
        nodes: list[NodeProto] = []
        h = f"{point.output}_base"
        if point.low_rank or point.vectors - {Vector.H}:
            edit.rename(point.output, edit.claim(h))
            edit.value(h, point.output, channel_axis(point), None, point_axes(point))
        outputs = plan_output_vectors(edit, nodes, point, h)
        self.vectors += outputs
        if self._scale is not None and point.low_rank:
            h = outputs[-1].output if outputs else h
            self.branches.append(self._branch(self._scale, nodes, point, h))
        edit.behind(point.output, nodes)

    def _branch(
        self, scale: ScaleBuilder, nodes: list[NodeProto], point: AttachPoint, h: str
    ) -> Branch:
        edit, linear = self._edit, point.linear
        check_gates(edit, point)
        rank = self._max_rank * len(point.parts)
        prefix = node_prefix(point)
        shape_a, shape_b = _factor_shapes(point, rank)
        a_weight = edit.weight(TensorRecord(f"{point.name}.lora_A.weight", shape_a, linear.dtype))
        b_weight = edit.weight(TensorRecord(f"{point.name}.lora_B.weight", shape_b, linear.dtype))
        x = linear.x
        if linear.input_transposed:
            x = edit.node(nodes, "Transpose", [x], f"{prefix}/lora_x/Transpose", perm=[1, 0])
        op_a, op_b = _OPERATORS[linear.form]
        inputs = [a_weight.name, x] if linear.form is Form.EMBEDDING else [x, a_weight.name]
        a = edit.node(nodes, op_a, inputs, f"{prefix}/lora_A/{op_a}", **_conv_attributes(point))
        if Gate.INPUT in point.gates:
            s = scale.gated(linear.dtype, len(point.parts))
        else:
            s = scale.tensor(linear.dtype, len(point.parts), spatial_axes(point))
        router = None
        if Gate.ROUTER in point.gates:
            router = plan_router(
                edit,
                scale,
                nodes,
                point,
                a,
                s,
                max_rank=self._max_rank,
                slot_count=self._slot_count,
                experts=self._experts,
            )
            s = router.tensors[-1]
        m = edit.node(nodes, "Mul", [a, s], f"{prefix}/lora_scale/Mul")
        l = edit.node(nodes, op_b, [m, b_weight.name], f"{prefix}/lora_B/{op_b}")  # noqa: E741
        total = sum_name(edit, point)
        edit.node(nodes, "Add", [h, l], f"{prefix}/lora_add/Add", output=total)
        requantized = plan_requantized(edit, nodes, point, total)
        sums = () if requantized is None else ((total, None),)
        for name, size in ((a, rank), (m, rank), (l, None), *sums):
            edit.value(name, point.output, channel_axis(point), size, point_axes(point))
        return Branch(
            attach=point,
            a_weight=a_weight,
            b_weight=b_weight,
            x=linear.x,
            h=h,
            a=a,
            m=m,
            l=l,
            y=point.output,
            relayouts=(x,) if x != linear.x else (),
            router=router,
            requantized=requantized,
        )


def _factor_shapes(point: AttachPoint, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    linear = point.linear
    if linear.conv is None:
        return (linear.in_features, rank), (rank, linear.out_features)
    ones = (1,) * len(linear.conv.kernel)
    return (rank, linear.in_features, *linear.conv.kernel), (linear.out_features, rank, *ones)


def _conv_attributes(point: AttachPoint) -> dict[str, Any]:
    """Geometry for A; B is 1 x 1 with the defaults of Conv."""
    conv = point.linear.conv
    if conv is None:
        return {}
    given: dict[str, Any] = {"kernel_shape": list(conv.kernel), "strides": list(conv.strides)}
    if conv.auto_pad == "NOTSET":
        given["pads"] = list(conv.pads)
    else:
        given["auto_pad"] = conv.auto_pad
    return given
