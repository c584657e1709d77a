"""W' and d of several adapters against their definition, applied one after the other to y."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape
from lora_quant.runtime.reference.base_view import BaseView
from lora_quant.runtime.reference.reference import Reference
from lora_quant.runtime.reference.sites import Site
from lora_quant.runtime.reference.updates import Updates
from tests.builders import GraphBuilder

Array = NDArray[np.float64]
IN, OUT, RANK = 5, 4, 2
NODE = "/q/MatMul"


@dataclass(frozen=True)
class Step:
    """What one adapter brings; `strength` multiplies what it adds."""

    kind: str
    seed: int
    strength: float

    def draw(self, *shape: int) -> Array:
        # Another stream for each shape; values about 1, so that nothing cancels to nothing.
        return np.random.default_rng([self.seed, *shape]).normal(size=shape)

    def lowered(self) -> Lowered | Dense:
        if self.kind == "dense":
            return Dense(self.draw(OUT, IN), self.draw(OUT))
        rank = 0 if self.kind in ("h", "c") else RANK
        return Lowered(
            A=self.draw(rank, IN),
            B=self.draw(OUT, rank),
            s=self.draw(rank),
            g=self.draw(OUT, 1)[:, 0] if self.kind == "g" else None,
            h=self.draw(IN) if self.kind == "h" else None,
            c=self.draw(OUT) if self.kind in ("g", "c") else None,
        )


@dataclass
class FixedAdapter:
    """An adapter of one module whose canonical form is known."""

    step: Step
    shapes: dict[str, ModuleShape] = field(
        default_factory=lambda: {"q": ModuleShape("q", RANK, IN, OUT)}
    )
    parameters: dict[str, Any] = field(default_factory=dict)

    def lower(self, module: str, base: BaseModules | None = None) -> Lowered | Dense:
        assert module == "q"
        return self.step.lowered()


def linear() -> GraphBuilder:
    graph = GraphBuilder()
    x = graph.input("x", (3, IN))
    product = graph.node("MatMul", [x, graph.weight("w", IN, OUT)], NODE)
    graph.output(graph.node("Add", [product, graph.weight("b", OUT)], "/q/Add"), (3, OUT))
    return graph


def outputs(steps: list[Step], x: NDArray[np.float32]) -> NDArray[np.float32]:
    view = BaseView(linear().model(), Path("model.onnx"))
    adapters = {str(i): cast("Adapter", FixedAdapter(step)) for i, step in enumerate(steps)}
    sites = {name: {"q": Site(NODE, 0, OUT)} for name in adapters}
    updates = Updates(view, adapters, sites, {name: {} for name in adapters}, None)
    change = updates.change({str(i): step.strength for i, step in enumerate(steps)})
    (y,) = Reference(view, updates.nodes).run({"x": x}, change).values()
    return y


def defined(steps: list[Step], x: Array) -> Array:
    """y of the last adapter, each of which sees the base through those before it."""
    weights = linear().weights
    inputs = x
    for step in steps:
        lowered = step.lowered()
        if isinstance(lowered, Lowered) and lowered.h is not None:
            inputs = inputs * lowered.h
    y = inputs @ weights["w"].astype(np.float64) + weights["b"].astype(np.float64)
    for step in steps:
        lowered = step.lowered()
        if isinstance(lowered, Dense):
            assert lowered.c is not None
            y = y + step.strength * (x @ lowered.delta.T + lowered.c)
            continue
        if lowered.g is not None:
            y = lowered.g * y
        y = y + step.strength * ((x @ lowered.A.T) * lowered.s @ lowered.B.T)
        if lowered.c is not None:
            y = y + step.strength * lowered.c
    return y


ADDING = st.builds(
    Step,
    kind=st.sampled_from(["low", "g", "c", "dense"]),
    seed=st.integers(0, 1000),
    strength=st.floats(-2, 2, width=16),
)
SCALING_INPUTS = st.builds(
    Step, kind=st.just("h"), seed=st.integers(0, 1000), strength=st.just(1.0)
)


def rounding(steps: list[Step], x: Array) -> Array:
    """What float32 may do to y.

    W' and d are rounded to it once, and the sum of IN + 2 terms is evaluated in it: at most
    (IN + 4) u of the sum of the absolute values of its terms W' x, d and b.
    """
    # y is linear in x but for d + b, so that columns of W' are differences of outputs.
    offset = defined(steps, np.zeros((1, IN)))[0]
    columns = [defined(steps, row[None])[0] - offset for row in np.eye(IN)]
    bias = np.abs(linear().weights["b"])
    terms = np.abs(x) @ np.abs(np.stack(columns)) + np.abs(offset) + 2 * bias
    bound: Array = (IN + 4) * 2.0**-24 * terms
    return bound


@settings(max_examples=40)
@given(st.lists(ADDING, min_size=1, max_size=3) | st.lists(SCALING_INPUTS, min_size=1, max_size=3))
def test_adapters_act_one_after_the_other(steps: list[Step]) -> None:
    x = np.random.default_rng(7).normal(size=(3, IN)).astype(np.float32)
    wide = x.astype(np.float64)
    error = np.abs(outputs(steps, x) - defined(steps, wide))
    assert (error <= rounding(steps, wide)).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_order_matters_where_an_output_is_scaled(order: tuple[int, int]) -> None:
    steps = [Step("g", 1, 1.0), Step("low", 2, 1.0)]
    chosen = [steps[i] for i in order]
    x = np.ones((3, IN), np.float32)
    y, other = outputs(chosen, x), outputs(chosen[::-1], x)
    assert np.abs(y - other).max() > 0.1


def test_without_adapters_the_reference_is_the_base() -> None:
    view = BaseView(linear().model(), Path("model.onnx"))
    x = np.ones((3, IN), np.float32)
    (y,) = (
        Reference(view, [NODE]).run({"x": x}, Updates(view, {}, {}, {}, None).change({})).values()
    )
    wide = x.astype(np.float64)
    assert (np.abs(y - defined([], wide)) <= rounding([], wide)).all()
