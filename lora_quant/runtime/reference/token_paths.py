"""What no weight can hold: updates that depend on the token. The reference has nodes for them.

    y += gate * sum over e of p_e * ((x A_e) B_e)        p = mean over tokens of softmax((x A) R)

A gated adapter has one A and a gate per token; a routed one has an A_e and a B_e for each of its
experts, whose weights p are those of a sequence. Written as the adapter's own definition has it:
the branches of a pack weigh ranks instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.reference.base_view import LinearView

GATE = "lora_quant/gate_{}"
"""Name of the gate's input `[batch, tokens, 1]` of one type, shared by all gated paths."""
_AXES_AS_INPUT = 18  # ReduceMean has its axes as an attribute before


@dataclass(frozen=True)
class PathSpec:
    """One module of one adapter at the node `node`; 0 `experts` for a gate without a router."""

    node: str
    adapter: str
    module: str
    experts: int

    @property
    def name(self) -> str:
        """Prefix of its inputs and nodes; no two paths have the same."""
        return f"lora_quant/{self.node}/{self.adapter}/{self.module}"


@dataclass(frozen=True, eq=False)
class PathValues:
    """A `[r, in]`, B `[out, r]` with all factors in it, router `[experts, r]` or None."""

    A: Array
    B: Array
    router: Array | None

    def feeds(self, spec: PathSpec, dtype: np.dtype[Any]) -> Iterator[tuple[str, Array]]:
        """Values of the inputs that `PathNodes` made."""
        yield f"{spec.name}/A", self.A.T.astype(dtype)
        if self.router is None:
            yield f"{spec.name}/B", self.B.T.astype(dtype)
            return
        yield f"{spec.name}/R", self.router.T.astype(dtype)
        rank = len(self.A) // spec.experts
        for number in range(spec.experts):
            ranks = slice(number * rank, (number + 1) * rank)
            yield f"{spec.name}/A{number}", self.A[ranks].T.astype(dtype)
            yield f"{spec.name}/B{number}", self.B[:, ranks].T.astype(dtype)


def no_values(spec: PathSpec, linear: LinearView) -> PathValues:
    """Values with which a path adds nothing."""
    out, inputs = linear.shape[:2]
    rank = max(spec.experts, 1)
    router = np.zeros((spec.experts, rank)) if spec.experts else None
    return PathValues(np.zeros((rank, inputs)), np.zeros((out, rank)), router)


class PathNodes:
    """Adds the nodes of paths to a graph of onnx-graphsurgeon."""

    def __init__(self, graph: Any) -> None:
        import onnx_graphsurgeon as gs

        self._gs = gs
        self._graph = graph
        self._gates: dict[str, Any] = {}

    def add(self, spec: PathSpec, linear: LinearView) -> Any:
        """The tensor that the path adds to the node's product."""
        x, name, dtype = linear.node.inputs[0], spec.name, linear.dtype
        a = self._product(x, f"{name}/A", dtype)
        if not spec.experts:
            update = self._product(a, f"{name}/B", dtype)
            return self._node("Mul", [update, self._gate(dtype)], f"{name}/gated", dtype)
        logits = self._product(a, f"{name}/R", dtype)
        softmax = self._node("Softmax", [logits], f"{name}/softmax", dtype, axis=-1)
        p = self._mean(softmax, f"{name}/p", dtype)
        total = None
        for number in range(spec.experts):
            part = f"{name}/expert{number}"
            chosen = self._gs.Constant(
                f"{part}/one", np.eye(spec.experts, dtype=dtype)[:, [number]]
            )
            weight = self._node("MatMul", [p, chosen], f"{part}/p", dtype)
            a = self._product(x, f"{name}/A{number}", dtype)
            update = self._product(a, f"{name}/B{number}", dtype)
            weighed = self._node("Mul", [update, weight], f"{part}/weighed", dtype)
            together = [total, weighed]
            total = weighed if total is None else self._node("Add", together, part, dtype)
        return total

    def _gate(self, dtype: np.dtype[Any]) -> Any:
        name = GATE.format(dtype)
        if name not in self._gates:
            self._gates[name] = self._input(name, dtype, ("gate batch", "gate tokens", 1))
        return self._gates[name]

    def _mean(self, tensor: Any, name: str, dtype: np.dtype[Any]) -> Any:
        """The mean over the tokens of `[batch, tokens, experts]`."""
        if self._graph.opset < _AXES_AS_INPUT:
            return self._node("ReduceMean", [tensor], name, dtype, axes=[1], keepdims=1)
        axes = self._gs.Constant(f"{name}/axes", np.array([1], np.int64))
        return self._node("ReduceMean", [tensor, axes], name, dtype, keepdims=1)

    def _product(self, x: Any, name: str, dtype: np.dtype[Any]) -> Any:
        """x times an input, which has the name."""
        matrix = self._input(name, dtype, (f"rows of {name}", f"columns of {name}"))
        return self._node("MatMul", [x, matrix], f"{name}/product", dtype)

    def _input(self, name: str, dtype: np.dtype[Any], shape: tuple[int | str, ...]) -> Any:
        variable = self._gs.Variable(name, dtype, shape)
        self._graph.inputs.append(variable)
        return variable

    def _node(
        self, op: str, inputs: list[Any], name: str, dtype: np.dtype[Any], **attrs: Any
    ) -> Any:
        output = self._gs.Variable(name, dtype)
        self._graph.nodes.append(
            self._gs.Node(op=op, name=name, inputs=inputs, outputs=[output], attrs=attrs)
        )
        return output
