"""The bias Add behind a linear node, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import GraphBuilder
from tests.graph.helpers import opened, request, resolve

Build = Callable[[GraphBuilder, str], str]


def bias(*shape: int, first: bool = False) -> Build:
    def build(g: GraphBuilder, y: str) -> str:
        b = g.weight("b", *shape)
        return g.node("Add", [b, y] if first else [y, b], "/fc/Add", "z")

    return build


def read_twice(g: GraphBuilder, y: str) -> str:
    z = bias(4)(g, y)
    return g.node("Mul", [y, z], "/Mul", "w")


def as_output(g: GraphBuilder, y: str) -> str:
    g.output(y, ("N", 4))
    return bias(4)(g, y)


def residual(g: GraphBuilder, y: str) -> str:
    return g.node("Add", [y, "x"], "/fc/Add", "z")


def doubled(g: GraphBuilder, y: str) -> str:
    return g.node("Add", [y, y], "/fc/Add", "z")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (bias(4), ("/fc/Add", "z")),
        (bias(4, first=True), ("/fc/Add", "z")),
        (bias(1), (None, "/fc/MatMul_output_0")),
        (bias(1, 4), (None, "/fc/MatMul_output_0")),
        (read_twice, (None, "/fc/MatMul_output_0")),
        (as_output, (None, "/fc/MatMul_output_0")),
        (residual, (None, "/fc/MatMul_output_0")),
        (doubled, (None, "/fc/MatMul_output_0")),
    ],
)
def test_after_a_matmul(tmp_path: Path, build: Build, expected: tuple[str | None, str]) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.matmul("/fc/MatMul", x, in_features=4, out_features=4)
    graph.output(build(graph, y), ("N", 4))
    base = opened(graph.model(), tmp_path)
    (point,) = resolve(base, [request("fc", 4, 4)]).points
    assert (point.bias_node, point.output) == expected


def test_a_bias_that_equals_another_one_passes_through_an_identity(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.matmul("/fc/MatMul", x, in_features=4, out_features=4)
    b = graph.node("Identity", [graph.weight("other.bias", 4)], "Identity_0", "onnx::Add_9")
    graph.output(graph.node("Add", [b, y], "/fc/Add", "z"), ("N", 4))
    base = opened(graph.model(), tmp_path)
    (point,) = resolve(base, [request("fc", 4, 4)]).points
    assert (point.bias_node, point.output) == ("/fc/Add", "z")


@pytest.mark.parametrize(
    ("shape", "is_bias"),
    [((4, 1, 1), True), ((1, 4, 1, 1), True), ((4,), False), ((1, 1, 4, 1), False)],
)
def test_after_a_convolution(tmp_path: Path, shape: tuple[int, ...], is_bias: bool) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 4, 4, 4))
    y = graph.node("Conv", [x, graph.weight("w", 4, 4, 1, 1)], "/fc/Conv")
    graph.output(bias(*shape)(graph, y), (1, 4, 4, 4))
    base = opened(graph.model(), tmp_path)
    (point,) = resolve(base, [request("fc", 4, 4)]).points
    assert (point.output == "z") == is_bias
