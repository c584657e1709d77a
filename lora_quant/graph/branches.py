"""Adding the LoRA branches of a common max rank R to a graph, in place.

Before                       After
    y = W x  (+ bias)            h = W x  (+ bias)          renamed, otherwise as it was
                                 a = A x
                                 m = s * a
                                 l = B m
                                 y = h + l                  the old name: consumers stay valid

MatMul form: A [in, parts * R], s [parts * R], B [parts * R, out]. Conv form: A [parts * R, in,
*kernel], s [1, parts * R, 1, 1], B [out, parts * R, 1, 1]. A and B are initialised with zeros and
the graph input alpha scales every branch, so that the graph computes the base until weights of a
use case replace them. Nothing else of the graph is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from onnx import NodeProto, ValueInfoProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base import BaseGraph
from lora_quant.graph.module_names import path_of_node_name
from lora_quant.graph.records import (
    AttachPoint,
    Branch,
    BranchedGraph,
    Form,
    TensorRecord,
)
from lora_quant.graph.scale import ScaleBuilder

AlphaLayout = Literal["slot", "rank"]


def add_branches(
    base: BaseGraph,
    points: Iterable[AttachPoint],
    *,
    max_rank: int,
    slot_count: int,
    alpha_name: str,
    alpha_layout: AlphaLayout,
) -> BranchedGraph:
    """Edit the graph of `base` in place and return the records of what was added.

    `max_rank` is R, `slot_count` the largest number of adapters in a use case. Raises GraphError
    if a name that the branches need is taken.
    """
    points = tuple(points)
    proto = base.model.proto
    names = _Names(base)
    names.claim(alpha_name)
    scale = ScaleBuilder(
        alpha_name=alpha_name,
        layout=alpha_layout,
        max_rank=max_rank,
        slot_count=slot_count,
        conv_ranks=frozenset(_spatial_axes(p) for p in points if p.linear.form is Form.CONV),
        only_conv=all(p.linear.form is Form.CONV for p in points),
        claim=names.claim,
    )
    builder = _BranchBuilder(base, names, scale, max_rank)
    branches = tuple(builder.plan(point) for point in points)
    builder.apply()
    record = scale.apply(proto, base.zeros)
    return BranchedGraph(
        branches=branches,
        scale=record,
        max_rank=max_rank,
        slot_count=slot_count,
    )


class _Names:
    """Every name of the model; a name that is taken is an error, never silently altered."""

    def __init__(self, base: BaseGraph) -> None:
        self._file = base.path
        self._taken = set(base.index.names)
        # A graph that was edited already has more than its index says.
        self._taken.update(tensor.name for tensor in base.model.proto.graph.initializer)

    def claim(self, name: str) -> str:
        if name in self._taken:
            raise GraphError(
                f"the graph already has a tensor or node named {name!r}, which the branches need",
                where=Where(file=self._file, tensor=name),
                hint="give the base graph without LoRA branches, or choose another --alpha-name",
            )
        self._taken.add(name)
        return name


class _BranchBuilder:
    """Collects what the branches add; the graph is edited only when every name is certain."""

    def __init__(self, base: BaseGraph, names: _Names, scale: ScaleBuilder, max_rank: int) -> None:
        self._graph = base.model.proto.graph
        self._index = base.index
        self._names = names
        self._scale = scale
        self._zeros = base.zeros
        self._max_rank = max_rank
        self._branches: list[Branch] = []
        self._nodes: dict[int, list[NodeProto]] = {}
        self._values: list[ValueInfoProto] = []

    def plan(self, point: AttachPoint) -> Branch:
        """Name and describe the branch of one attach point."""
        linear, claim = point.linear, self._names.claim
        rank = self._max_rank * len(point.parts)
        prefix = _node_prefix(point)
        shape_a, shape_b = _factor_shapes(point, rank)
        a_weight = TensorRecord(claim(f"{point.name}.lora_A.weight"), shape_a, linear.dtype)
        b_weight = TensorRecord(claim(f"{point.name}.lora_B.weight"), shape_b, linear.dtype)
        nodes: list[NodeProto] = []
        x = linear.x
        if linear.input_transposed:
            x = self._node(nodes, "Transpose", [x], f"{prefix}/lora_x/Transpose", perm=[1, 0])
        op = "Conv" if linear.form is Form.CONV else "MatMul"
        a = self._node(
            nodes, op, [x, a_weight.name], f"{prefix}/lora_A/{op}", **_conv_attributes(point)
        )
        s = self._scale.tensor(linear.dtype, linear.form, len(point.parts), _spatial_axes(point))
        m = self._node(nodes, "Mul", [a, s], f"{prefix}/lora_scale/Mul")
        l = self._node(nodes, op, [m, b_weight.name], f"{prefix}/lora_B/{op}")  # noqa: E741
        h = claim(f"{point.output}_base")
        nodes.append(
            helper.make_node("Add", [h, l], [point.output], name=claim(f"{prefix}/lora_add/Add"))
        )
        self._nodes[self._index.positions[point.output]] = nodes
        branch = Branch(
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
        )
        self._values += self._value_infos(branch, rank)
        self._branches.append(branch)
        return branch

    def apply(self) -> None:
        """Edit the graph: a branch goes behind the node that it extends, the scale to the front."""
        for branch in self._branches:
            for weight in (branch.a_weight, branch.b_weight):
                self._graph.initializer.append(self._zeros.tensor(weight))
            producer = self._index.producers[branch.y]
            producer.output[list(producer.output).index(branch.y)] = branch.h
        self._graph.value_info.extend(self._values)
        self._copy_annotations()
        for position in sorted(self._nodes, reverse=True):
            for node in reversed(self._nodes[position]):
                self._graph.node.insert(position + 1, node)
        for node in reversed(self._scale.nodes):
            self._graph.node.insert(0, node)

    def _node(
        self, nodes: list[NodeProto], op: str, inputs: list[str], name: str, **attributes: Any
    ) -> str:
        output = self._names.claim(f"{name}_output_0")
        nodes.append(
            helper.make_node(op, inputs, [output], name=self._names.claim(name), **attributes)
        )
        return output

    def _copy_annotations(self) -> None:
        """h is quantized as y was."""
        renamed = {branch.y: branch.h for branch in self._branches}
        for annotation in list(self._graph.quantization_annotation):
            if annotation.tensor_name in renamed:
                copy = self._graph.quantization_annotation.add()
                copy.CopyFrom(annotation)
                copy.tensor_name = renamed[annotation.tensor_name]

    def _value_infos(self, branch: Branch, rank: int) -> Iterable[ValueInfoProto]:
        """Types of the new tensors, where the graph tells the type of y."""
        known = self._index.values.get(branch.y)
        if known is None or not known.type.tensor_type.HasField("shape"):
            return
        axes = len(known.type.tensor_type.shape.dim)
        is_conv = branch.attach.linear.form is Form.CONV
        if axes == 0 or (is_conv and axes != _spatial_axes(branch.attach) + 2):
            return
        axis = 1 if is_conv else axes - 1
        channels = {branch.h: None, branch.a: rank, branch.m: rank, branch.l: None}
        for name, size in channels.items():
            yield _like(known, name, axis, size)


def _like(known: ValueInfoProto, name: str, axis: int, channels: int | None) -> ValueInfoProto:
    value = ValueInfoProto()
    value.name = name
    value.type.CopyFrom(known.type)
    if channels is not None:
        dim = value.type.tensor_type.shape.dim[axis]
        dim.Clear()
        dim.dim_value = channels
    return value


def _node_prefix(point: AttachPoint) -> str:
    """The graph's own slashed spelling of the module where it has one, the dotted path elsewhere.

    Attach points differ in their names, so that their prefixes do.
    """
    node = point.linear.node
    return node.rpartition("/")[0] if path_of_node_name(node) == point.name else f"/{point.name}"


def _spatial_axes(point: AttachPoint) -> int:
    return len(point.linear.conv.kernel) if point.linear.conv else 0


def _factor_shapes(point: AttachPoint, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    linear = point.linear
    if linear.conv is None:
        return (linear.in_features, rank), (rank, linear.out_features)
    ones = (1,) * len(linear.conv.kernel)
    return (rank, linear.in_features, *linear.conv.kernel), (linear.out_features, rank, *ones)


def _conv_attributes(point: AttachPoint) -> dict[str, object]:
    """Geometry for A; B is 1 x 1 with the defaults of Conv."""
    conv = point.linear.conv
    if conv is None:
        return {}
    given: dict[str, object] = {"kernel_shape": list(conv.kernel), "strides": list(conv.strides)}
    if conv.auto_pad == "NOTSET":
        given["pads"] = list(conv.pads)
    else:
        given["auto_pad"] = conv.auto_pad
    return given
