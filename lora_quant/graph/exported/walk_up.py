"""Walking from a tensor up to the linear node that it comes from, through what a branch may hold.

    linear  ->  change of layout or type | Mul by a scale  ->  ...  ->  tensor

What a branch may not hold is walked through as well where it has one tensor to follow, and kept as
a problem: so a branch that is nearly one is told from everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.relayouts import is_relayout
from lora_quant.graph.exported.scales import REACH, ScaleOperand, ScaleOperands
from lora_quant.graph.exported.small_constants import stored_constant
from lora_quant.graph.records import LinearNode

_DEFAULT = ("", "ai.onnx")
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, eq=False)
class Step:
    """One node on the way; `operand` is what a Mul multiplies by, from the tensor `factor`."""

    node: NodeProto
    operand: ScaleOperand | None = None
    factor: str = ""


@dataclass(frozen=True, eq=False)
class Walk:
    """The way from a linear node to a tensor, in graph order.

    `linear` is where it begins; None if it begins elsewhere: at the tensor `begin`. `problems` are
    the reasons why this is no part of a branch, the first one in graph order last.
    """

    linear: LinearNode | NotLinear | None
    begin: str
    steps: tuple[Step, ...]
    problems: tuple[str, ...] = ()


class Walker:
    """Walks in one graph."""

    def __init__(self, graph: BaseGraph) -> None:
        self._graph = graph
        self._scales = ScaleOperands(graph)

    def up(self, tensor: str) -> Walk:
        """The walk from `tensor` to the next linear node above it."""
        steps: list[Step] = []
        problems: list[str] = []
        for _ in range(REACH):
            linear = self.linear_at(tensor)
            if linear is not None:
                return Walk(linear, tensor, tuple(reversed(steps)), tuple(problems))
            node = self._graph.index.producers.get(tensor)
            if node is None or node.domain not in (*_DEFAULT, "com.microsoft"):
                break
            found = self._step(node)
            if found is None:
                break
            step, tensor, problem = found
            steps.append(step)
            if problem:
                problems.append(problem)
        return Walk(None, tensor, tuple(reversed(steps)), tuple(problems))

    def linear_at(self, tensor: str) -> LinearNode | NotLinear | None:
        """The linear node whose output `tensor` is, one with a computed weight among them."""
        catalog = self._graph.catalog
        found = catalog.linears.get(tensor) or catalog.embeddings.linears.get(tensor)
        if found is not None:
            return found
        node = self._graph.index.producers.get(tensor)
        if node is None or node.op_type not in ("MatMul", "Gemm", "Conv"):
            return None
        named = catalog.nodes.get(node.name or tensor)
        return named if isinstance(named, NotLinear) else None

    def sources(self, tensor: str) -> list[str]:
        """`tensor`, and before it what it is only another layout or type of."""
        found = [tensor]
        while len(found) <= REACH:
            node = self._graph.index.producers.get(found[-1])
            if node is None or not is_relayout(node):
                break
            found.append(node.input[0])
        return found

    def is_scale(self, tensor: str) -> bool:
        """Whether `tensor` is what a Mul of a branch may multiply by."""
        return self._scales.of(tensor) is not None

    def _step(self, node: NodeProto) -> tuple[Step, str, str] | None:
        """A node, the tensor to follow, and why the node is in no branch, "" if it may be."""
        if is_relayout(node):
            return Step(node), node.input[0], ""
        if node.domain not in _DEFAULT and node.op_type not in _QUANTIZING:
            return None
        name = repr(node.name or node.output[0])
        if node.op_type == "Mul":
            return self._multiplied(node, name)
        if node.op_type == "Div":
            reason = f"it is divided by a tensor ({name}), expected a Mul"
            return Step(node), node.input[0], reason
        if node.op_type in ("Add", "Sub"):
            biased = self._biased(node)
            reason = f"a bias is added inside of it ({name}), which a branch of A and B cannot hold"
            return None if biased is None else (Step(node), biased, reason)
        if node.op_type in _QUANTIZING:
            return Step(node), node.input[0], f"it is quantized ({node.op_type} {name})"
        return None

    def _multiplied(self, node: NodeProto, name: str) -> tuple[Step, str, str] | None:
        found = [self._scales.of(tensor) for tensor in node.input]
        scales = [place for place, operand in enumerate(found) if operand is not None]
        if len(scales) == 1:
            (place,) = scales
            return Step(node, found[place], node.input[place]), node.input[1 - place], ""
        if scales:
            return None
        leading = [place for place, tensor in enumerate(node.input) if self._leads(tensor)]
        if len(leading) != 1:
            return None
        (place,) = leading
        reason = (
            f"it is multiplied ({name}) by what is computed, as DoRA does, or by a tensor of "
            "several axes: expected one value, or a constant or an input of one value per rank"
        )
        return Step(node, None, node.input[1 - place]), node.input[place], reason

    def _leads(self, tensor: str) -> bool:
        """Whether a linear node lies above, behind scales, biases and changes of layout alone."""
        for _ in range(REACH):
            if self.linear_at(tensor) is not None:
                return True
            node = self._graph.index.producers.get(tensor)
            if node is None or node.domain not in _DEFAULT:
                return False
            following: str | None = None
            if is_relayout(node):
                following = node.input[0]
            elif node.op_type == "Mul":
                operands = [self._scales.of(t) for t in node.input]
                if sum(operand is None for operand in operands) == 1:
                    following = node.input[operands.index(None)]
            elif node.op_type in ("Add", "Sub"):
                following = self._biased(node)
            if following is None:
                return False
            tensor = following
        return False

    def _biased(self, node: NodeProto) -> str | None:
        """What a constant is added to, None without a constant."""
        constant = [self._is_constant(tensor) for tensor in node.input]
        return node.input[constant.index(False)] if sum(constant) == 1 else None

    def _is_constant(self, tensor: str) -> bool:
        source = self.sources(tensor)[-1]
        return stored_constant(source, self._graph.index) is not None
