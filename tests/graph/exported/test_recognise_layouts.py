"""Whatever changes of layout lie in a branch: if it is taken, it adds B (s * (A x)) in place.

All sizes are 2, so that the engine accepts any order of axes.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from lora_quant.graph.exported.recognise import recognise_branches
from tests.builders import GraphBuilder
from tests.graph.helpers import opened, run

Array = NDArray[Any]
SIZE = 2
SHAPES = [(2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2, 2), (2, 2, 1, 2)]


@dataclass
class Way:
    """A branch as it is drawn: its nodes, and the shape that they have led to."""

    graph: GraphBuilder
    tensor: str
    shape: tuple[int, ...]
    count: int = 0
    ops: list[str] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> None:
        self.count += 1
        self.ops.append(op)
        self.tensor = self.graph.node(op, inputs, f"n{self.count}", **attributes)
        self.shape = shape

    def integers(self, values: list[int]) -> str:
        return self.graph.constant(f"i{self.count}", np.array(values, np.int64))

    def relayout(self, draw: st.DrawFn) -> None:
        axes, shape = len(self.shape), self.shape
        op = draw(st.sampled_from(["Transpose", "Reshape", "Unsqueeze", "Squeeze", "back"]))
        if op == "Transpose":
            order = draw(st.permutations(range(axes)))
            self.add(op, [self.tensor], tuple(shape[n] for n in order), perm=list(order))
        elif op == "Unsqueeze":
            axis = draw(st.integers(0, axes))
            made = (*shape[:axis], 1, *shape[axis:])
            self.add(op, [self.tensor, self.integers([axis])], made)
        elif op == "Squeeze" and 1 in shape:
            axis = shape.index(1)
            made = (*shape[:axis], *shape[axis + 1 :])
            self.add(op, [self.tensor, self.integers([axis - axes])], made)
        elif op == "Reshape":
            parts = [SIZE] * (math.prod(shape).bit_length() - 1)
            while len(parts) > 1 and draw(st.booleans()):
                place = draw(st.integers(0, len(parts) - 2))
                parts[place : place + 2] = [parts[place] * parts[place + 1]]
            if draw(st.booleans()):
                parts.insert(draw(st.integers(0, len(parts))), 1)
            told = list(parts)
            if draw(st.booleans()):
                told[draw(st.integers(0, len(told) - 1))] = -1
            self.add(op, [self.tensor, self.integers(told)], tuple(parts))

    def linear(self, weight: Array, name: str, *, as_conv: bool) -> None:
        if as_conv:
            assume(len(self.shape) in (3, 4) and self.shape[1] == SIZE)
            kernel = (1,) * (len(self.shape) - 2)
            stored = self.graph.constant(name, weight.reshape(SIZE, SIZE, *kernel))
            self.add("Conv", [self.tensor, stored], self.shape)
        else:
            assume(self.shape[-1] == SIZE)
            stored = self.graph.constant(name, np.ascontiguousarray(weight.T))
            self.add("MatMul", [self.tensor, stored], self.shape)


@st.composite
def ways(draw: st.DrawFn) -> tuple[GraphBuilder, Way, Array, tuple[int, ...], bool]:
    """A base linear with a branch whose layouts are drawn, and A, B and s as one matrix."""
    graph = GraphBuilder()
    shape = draw(st.sampled_from(SHAPES))
    given_x = graph.input("given", shape)
    x = graph.node("Relu", [given_x], "before", "x")
    if draw(st.booleans()):
        graph.value("x", shape)
    is_conv = len(shape) > 2 and shape[1] == SIZE and draw(st.booleans())
    way = Way(graph, x, shape)
    random = np.random.default_rng(1)
    a, b = (random.normal(size=(SIZE, SIZE)).astype(np.float32) for _ in range(2))
    scale = np.array([0.5, -2.0], np.float32)
    if is_conv:
        kernel = (1,) * (len(shape) - 2)
        h = graph.node("Conv", [x, graph.weight("W", SIZE, SIZE, *kernel)], "base")
    else:
        h = graph.node("MatMul", [x, graph.weight("W", SIZE, SIZE)], "base")
    for _ in range(draw(st.integers(0, 3))):
        way.relayout(draw)
    as_conv = draw(st.booleans())
    way.linear(a, "A", as_conv=as_conv)
    behind = len(way.shape) - 2 if as_conv else 0
    if draw(st.booleans()):
        wrong = draw(st.integers(0, len(way.shape) - 1)) if draw(st.booleans()) else behind
        stored = graph.constant("s", scale.reshape(SIZE, *[1] * wrong))
        assume(way.shape[len(way.shape) - 1 - wrong] == SIZE)
        way.add("Mul", [way.tensor, stored], way.shape)
    else:
        scale = np.ones(SIZE, np.float32)
    for _ in range(draw(st.integers(0, 1))):
        way.relayout(draw)
    way.linear(b, "B", as_conv=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 3))):
        way.relayout(draw)
    if math.prod(way.shape) == math.prod(shape) and way.shape != shape:
        way.add("Reshape", [way.tensor, graph.constant("end", np.array(shape))], shape)
    graph.node("Add", [h, way.tensor], "sum", "y")
    graph.output("y", [f"d{n}" for n in range(len(shape))])
    return graph, way, (b * scale) @ a, shape, is_conv


@settings(max_examples=120)
@given(ways())
def test_a_branch_that_is_taken_adds_up_in_place(
    drawn: tuple[GraphBuilder, Way, Array, tuple[int, ...], bool],
) -> None:
    graph, way, delta, shape, is_conv = drawn
    model = graph.model()
    with tempfile.TemporaryDirectory() as folder:
        found = recognise_branches(opened(model, Path(folder)))
    assert len(found.points) + len(found.near) == 1
    event("taken" if found.points else "near")
    event(f"{len(way.ops)} nodes, {'taken' if found.points else 'near'}")
    for name in ("x", way.tensor):
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    values = np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)
    _, x, l_ = run(model, {"given": values}, optimized=False)
    axis = 1 if is_conv else -1
    expected = np.moveaxis(np.moveaxis(x, axis, -1) @ delta.T, -1, axis)
    # Sums of four products of values up to 16, in float32.
    close = l_.shape == expected.shape and np.abs(l_ - expected).max() < 1e-4
    if found.points:
        assert close, way.ops
    elif close:
        event("right, but not taken")
