"""What a Mul of a branch multiplies by.

    constant                        ->  Identity | Cast | change of layout  ->  operand
    graph input                     ->  the same                            ->  operand
    graph input [slots] @ E         ->  the same                            ->  operand

An input may be repeated on the way, once for every part of a fused projection. At most one axis of
the operand has another size than 1, so that no change of layout changes the order of its values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.records import ScaleSource
from lora_quant.graph.exported.relayouts import SAME_LAYOUT, is_relayout, sizes_of
from lora_quant.graph.exported.small_constants import integers_of, stored_constant
from lora_quant.graph.files.element_types import FLOAT_TYPES
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import LinearNode, Storage

REACH = 32  # more nodes than an exporter puts in a row; keeps the walk over a graph linear

_FLOATS = (*FLOAT_TYPES, TensorProto.DOUBLE)


@dataclass(frozen=True, eq=False)
class ScaleOperand:
    """Where the values of an operand come from.

    `tensor` holds them or is the graph input. `size` is their number, `axes` that of the axes of
    the operand, and `behind` how many axes lie behind the one with all of them. `expanding` is the
    product of an input and E.
    """

    source: ScaleSource
    tensor: str
    size: int
    axes: int
    behind: int
    expanding: LinearNode | None = None


class ScaleOperands:
    """What tensors of one graph are as scales; each is looked at once."""

    def __init__(self, graph: BaseGraph) -> None:
        self._graph = graph
        self._inputs = frozenset(value.name for value in graph.model.proto.graph.input)
        self._found: dict[str, ScaleOperand | None] = {}
        self._strengths: dict[str, bool] = {}

    def of(self, operand: str) -> ScaleOperand | None:
        """A tensor as a scale; None if it is computed otherwise, is no vector, or no float."""
        if operand not in self._found:
            self._found[operand] = self._look_at(operand)
        return self._found[operand]

    def _look_at(self, operand: str) -> ScaleOperand | None:
        graph = self._graph
        tensor, nodes = source_of(operand, graph)
        if tensor in self._inputs:
            return _operand(ScaleSource.INPUT, tensor, sizes_of(tensor, graph), nodes, graph)
        stored = stored_constant(tensor, graph.index)
        if stored is not None:
            if any(map(is_repeated, nodes)):
                return None
            if next(iter(casts_of(nodes)), stored.data_type) not in _FLOATS:
                return None
            return _operand(ScaleSource.CONSTANT, tensor, list(stored.dims), nodes, graph)
        linear = graph.catalog.linears.get(tensor)
        if linear is None or linear.op == "Conv" or linear.storage is not Storage.FLOAT:
            return None
        strengths, before = source_of(linear.x, graph)
        if strengths not in self._inputs or linear.input_transposed:
            return None
        if not self._only_scales(strengths):
            return None
        given = _operand(ScaleSource.INPUT, strengths, sizes_of(strengths, graph), before, graph)
        if given is None or given.behind != 0:
            return None
        sizes: list[int | None] = [*[1] * (given.axes - 1), linear.out_features]
        return _operand(ScaleSource.EXPANDED, strengths, sizes, nodes, graph, linear)

    def _only_scales(self, strengths: str) -> bool:
        """Whether an input ends at Mul nodes alone, behind constant matrices: it is no x."""
        if strengths not in self._strengths:
            self._strengths[strengths] = _ends_at_products(strengths, self._graph)
        return self._strengths[strengths]


def source_of(operand: str, graph: BaseGraph) -> tuple[str, list[NodeProto]]:
    """The tensor before all changes of layout and type, and the nodes of these, the last first."""
    nodes: list[NodeProto] = []
    tensor = operand
    while len(nodes) < REACH:
        node = graph.index.producers.get(tensor)
        if node is None or not (is_relayout(node) or is_repeated(node)):
            break
        nodes.append(node)
        tensor = node.input[0]
    return tensor, nodes


def is_repeated(node: NodeProto) -> bool:
    """Whether a node puts copies of one tensor in a row, as for the parts of a fused projection."""
    copies = set(node.input)
    return node.op_type == "Concat" and node.domain in ("", "ai.onnx") and len(copies) == 1


def casts_of(nodes: list[NodeProto]) -> list[int]:
    """The element types of the Cast nodes among some, in the same order."""
    return [int(attributes(node)["to"]) for node in nodes if node.op_type == "Cast"]


def _ends_at_products(strengths: str, graph: BaseGraph) -> bool:
    pending, seen = [strengths], {strengths}
    while pending:
        tensor = pending.pop()
        for node in graph.index.consumers.get(tensor, []):
            if node.op_type == "Mul":
                continue
            is_passed_on = is_relayout(node) or is_repeated(node)
            if not is_passed_on and node.output[0] not in graph.catalog.linears:
                return False
            if node.output[0] not in seen:
                seen.add(node.output[0])
                pending.append(node.output[0])
    return True


def _operand(
    source: ScaleSource,
    tensor: str,
    sizes: list[int | None] | None,
    nodes: list[NodeProto],
    graph: BaseGraph,
    expanding: LinearNode | None = None,
) -> ScaleOperand | None:
    known = [size for size in sizes or () if size is not None]
    if sizes is None or len(known) != len(sizes):
        return None
    for node in reversed(nodes):
        relaid = _relaid(known, node, graph)
        if relaid is None:
            return None
        known = relaid
    wide = [place for place, size in enumerate(known) if size != 1]
    if len(wide) > 1:
        return None
    behind = len(known) - 1 - wide[0] if wide else 0
    return ScaleOperand(source, tensor, math.prod(known), len(known), behind, expanding)


def _relaid(sizes: list[int], node: NodeProto, graph: BaseGraph) -> list[int] | None:
    """The sizes behind a change of layout, None if it does not fit or is computed."""
    if node.op_type in SAME_LAYOUT:
        return sizes
    if is_repeated(node):
        axis = attributes(node).get("axis")
        if not isinstance(axis, int) or not -len(sizes) <= axis < len(sizes):
            return None
        copied = list(sizes)
        copied[axis] *= len(node.input)
        return copied
    if node.op_type == "Transpose":
        permutation = attributes(node).get("perm", list(reversed(range(len(sizes)))))
        fits = sorted(permutation) == list(range(len(sizes)))
        return [sizes[place] for place in permutation] if fits else None
    if node.op_type == "Reshape":
        given = integers_of(node, 1, "shape", graph)
        if given is None or (0 in given and len(given) > len(sizes)):
            return None
        copied = [sizes[place] if size == 0 else size for place, size in enumerate(given)]
        rest = math.prod(size for size in copied if size > 0)
        made = [math.prod(sizes) // rest if size < 0 else size for size in copied]
        return made if math.prod(made) == math.prod(sizes) else None
    axes = integers_of(node, 1, "axes", graph)
    if axes is None:
        return [size for size in sizes if size != 1] if len(node.input) < 2 else None
    count = len(sizes) + (len(axes) if node.op_type == "Unsqueeze" else 0)
    if not all(-count <= axis < count for axis in axes):
        return None
    places = sorted({axis % count for axis in axes})
    if node.op_type == "Squeeze":
        return [size for place, size in enumerate(sizes) if place not in places]
    made = list(sizes)
    for place in places:
        made.insert(place, 1)
    return made
