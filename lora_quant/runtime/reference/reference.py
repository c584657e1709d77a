"""The reference that a pack is verified against: the base graph with its weights changed.

    y = g * (W (h * x) + b) + B (s * (A x)) + c  =  W' x + b + d

    W' = g * W * h + B diag(s) A        d = (g - 1) * b + c

Built with onnx-graphsurgeon from the base graph; it shares no code with the branch builder, and
knows neither slots nor padding nor alpha inputs. Every adapted W', every d and every replaced
constant is a graph input, so that one session serves all use cases. A grouped convolution becomes
one of a single group, with zeros between the groups: what LoRA adds to it reads all channels. What
depends on the token gets nodes of its own, see lora_quant.runtime.reference.token_paths.

A node whose weight is quantized stays as it is: its engine may round activations as well, or add up
integers. Beside it a float product computes (W' - W) x, from W dequantized, and its sum with the
node's goes where the node's went, into a Q/DQ pair of the base if it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.reference.base_view import BaseView, LinearView
from lora_quant.runtime.reference.engine import Engine
from lora_quant.runtime.reference.token_paths import (
    GATE,
    PathNodes,
    PathSpec,
    PathValues,
    no_values,
)


@dataclass(frozen=True, eq=False)
class NodeChange:
    """W' `[out, in, *kernel]` in one group, and d `[out]`, in the type of the node."""

    weight: Array
    added: Array


@dataclass(frozen=True, eq=False)
class BaseChange:
    """Everything that a use case changes: nodes by name, constants by name, and token paths.

    `gate` `[batch, tokens]` is what gated paths are multiplied by, None for 1.
    """

    nodes: Mapping[str, NodeChange] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    paths: Mapping[PathSpec, PathValues] = field(default_factory=dict)
    gate: NDArray[np.float32] | None = None


class Reference:
    """Runs the base graph with any of the nodes and constants changed."""

    def __init__(
        self,
        view: BaseView,
        nodes: Iterable[str],
        constants: Iterable[Any] = (),
        paths: Iterable[PathSpec] = (),
    ) -> None:
        """`nodes` may change, as may `constants`, tensors of `view`, whose graph is edited here."""
        self._nodes = {name: view.linear(name) for name in sorted(set(nodes))}
        self._paths = tuple(paths)
        self._constants = {tensor.name: view.open_constant(tensor) for tensor in constants}
        self._weights = {name: linear.ungrouped() for name, linear in self._nodes.items()}
        edit = _Edit(view)
        for name, linear in self._nodes.items():
            edit.open_node(name, linear, [spec for spec in self._paths if spec.node == name])
        self._engine = Engine(edit.exported(), view.path.parent, view.path)

    def run(
        self,
        inputs: Mapping[str, Array],
        change: BaseChange,
        move: Callable[[Array], Array] = lambda values: values,
    ) -> dict[str, Array]:
        """Outputs with a change of the base; those of the base itself with BaseChange().

        `move` is put on every weight and constant that may change.
        """
        constants = {**self._constants, **change.constants}
        feeds = {**inputs, **{name: move(values) for name, values in constants.items()}}
        for name, linear in self._nodes.items():
            node = change.nodes.get(name)
            weight = base = self._weights[name]
            if change.constants and (node is None or linear.is_quantized):
                weight = base = linear.ungrouped(change.constants)
            if node is not None:
                weight = node.weight
            weight = move(weight - base if linear.is_quantized else weight)
            feeds[f"{name}/weight"] = weight if linear.is_out_in else weight.T
            added = np.zeros(linear.shape[0], linear.dtype) if node is None else node.added
            feeds[f"{name}/added"] = added.reshape(linear.value_shape)
        for spec in self._paths:
            linear = self._nodes[spec.node]
            values = change.paths.get(spec) or no_values(spec, linear)
            feeds.update(values.feeds(spec, linear.dtype))
            if not spec.experts:
                gate = np.ones((1, 1)) if change.gate is None else change.gate
                feeds[GATE.format(linear.dtype)] = gate[:, :, None].astype(linear.dtype)
        return self._engine.run(feeds)

    @property
    def unit(self) -> float:
        """The largest unit roundoff among the types of what may change."""
        types = [linear.dtype for linear in self._nodes.values()]
        types += [value.dtype for value in self._constants.values()]
        return max((float(np.finfo(one).eps) / 2 for one in types), default=2.0**-24)


class _Edit:
    """The edits of one graph."""

    def __init__(self, view: BaseView) -> None:
        import onnx_graphsurgeon as gs

        self._gs = gs
        self._graph = view.graph
        self._paths = PathNodes(view.graph)

    def open_node(self, name: str, linear: LinearView, paths: Iterable[PathSpec]) -> None:
        """Read the weight from an input, and add d and the paths to the product."""
        node = linear.node
        product = node
        added = [self._input(f"{name}/added", linear, linear.value_shape)]
        added += [self._paths.add(spec, linear) for spec in paths]
        if linear.is_quantized:
            product = self._beside(name, linear)
            added.insert(0, product.outputs[0])
        shape = linear.shape
        if linear.groups > 1:
            shape = (shape[0], shape[1] * linear.groups, *shape[2:])
            product.attrs["group"] = 1
        stored = shape if linear.is_out_in else shape[::-1]
        product.inputs[linear.position] = self._input(f"{name}/weight", linear, stored)
        result, total = node.outputs[0], self._gs.Variable(f"{name}/product", linear.dtype)
        node.outputs[0] = total
        for number, tensor in enumerate(added, start=1):
            is_last = number == len(added)
            next_total = result if is_last else self._gs.Variable(f"{name}/{number}", linear.dtype)
            add = self._gs.Node("Add", f"{name}/Add{number}", inputs=[total, tensor])
            add.outputs.append(next_total)
            self._graph.nodes.append(add)
            total = next_total

    def _beside(self, name: str, linear: LinearView) -> Any:
        """A product of the same inputs as the node's, by a weight of its own and without a bias."""
        node, x = linear.node, linear.node.inputs[0]
        op, attributes = ("MatMul", {}) if linear.is_packed else (node.op, dict(node.attrs))
        made = self._gs.Node(op, f"{name}/change", attributes, inputs=[x, linear.source])
        made.outputs.append(self._gs.Variable(f"{name}/change", linear.dtype))
        self._graph.nodes.append(made)
        return made

    def exported(self) -> bytes:
        """The graph, its nodes in order."""
        self._graph.toposort()
        return bytes(self._gs.export_onnx(self._graph).SerializeToString())

    def _input(self, name: str, linear: LinearView, shape: tuple[int, ...]) -> Any:
        variable = self._gs.Variable(name, dtype=linear.dtype, shape=shape)
        self._graph.inputs.append(variable)
        return variable
