"""Random graphs with branches, in every form that exporters give them, and what they hold.

Each case is drawn as a `Case` of plain choices and built twice: with its branches, and without.
The arrays that went in are kept, so that nothing has to be read back from the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from tests.builders import GraphBuilder

Array = NDArray[Any]

IN, OUT, VOCABULARY = 5, 7, 11
BATCH, TOKENS = 2, 3
BASES = ("matmul", "gemm", "conv", "turned_conv", "wide_conv", "gather")
# How a branch reaches the layout that its own operators want.
WAYS = {
    "matmul": ("same", "rows", "rows_told", "conv", "squeezed_conv", "flat_batch"),
    "gemm": ("same", "matmul", "unsqueezed"),
    "conv": ("same", "matmul"),
    "turned_conv": ("same", "matmul"),
    "wide_conv": ("same",),
    "gather": ("same",),
}
SOURCES = ["node", "number", "initializer", "shared", "cast", "reshaped", "unsqueezed"]
SOURCES += ["input", "default", "expanded"]


@dataclass(frozen=True)
class ScaleChoice:
    """One Mul: whether it lies between A and B, whether it has a value per rank, and its source."""

    between: bool
    per_rank: bool
    source: str
    swapped: bool


@dataclass(frozen=True)
class BranchChoice:
    """One branch; `stored` tells how its weights are stored."""

    rank: int
    way: str
    scales: tuple[ScaleChoice, ...]
    swapped: bool
    stored: str
    casts: bool


@dataclass(frozen=True)
class Case:
    """One module with its branches; `bias` is "none", "inside" or "behind" the sums."""

    base: str
    bias: str
    branches: tuple[BranchChoice, ...]
    told: bool
    seed: int


@dataclass
class BuiltBranch:
    """What went into a branch: A `[rank, in, *kernel]`, B `[out, rank]`, its scales in order."""

    a: Array
    b: Array
    scales: list[Array] = field(default_factory=list)
    l: str = ""  # noqa: E741


@dataclass
class Built:
    """A graph with its branches, or its base, with the feeds that it takes."""

    model: ModelProto
    feeds: dict[str, Array]
    branches: list[BuiltBranch]
    h: str
    y: str


@st.composite
def scale_choices(draw: st.DrawFn) -> ScaleChoice:
    between = draw(st.booleans())
    source = draw(st.sampled_from(SOURCES))
    per_rank = between and source != "number" and draw(st.booleans())
    if source == "expanded":
        between = per_rank = True
    return ScaleChoice(between, per_rank, source, draw(st.booleans()))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    base = draw(st.sampled_from(BASES))
    branches = draw(
        st.lists(
            st.builds(
                BranchChoice,
                rank=st.integers(1, 4),
                way=st.sampled_from(WAYS[base]),
                scales=st.lists(scale_choices(), max_size=2).map(tuple),
                swapped=st.booleans(),
                stored=st.sampled_from(("plain", "transposed", "identity")),
                casts=st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    bias = draw(st.sampled_from(("none", "inside", "behind")))
    return Case(base, bias, tuple(branches), draw(st.booleans()), draw(st.integers(0, 2**16)))


def build(case: Case, *, with_branches: bool = True) -> Built:
    """The graph of a case; without its branches it is the base."""
    return _Builder(case).built(with_branches=with_branches)


class _Builder:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.graph = GraphBuilder(seed=case.seed)
        self.random = np.random.default_rng(case.seed)
        self.feeds: dict[str, Array] = {}
        self.conv = case.base in ("conv", "turned_conv", "wide_conv")
        self.turned = case.base == "turned_conv"
        self.kernel = {"wide_conv": (3, 2)}.get(case.base, (1, 1) if self.conv else ())

    def built(self, *, with_branches: bool) -> Built:
        graph, case = self.graph, self.case
        shape = {
            "matmul": (BATCH, TOKENS, IN),
            "gemm": (TOKENS, IN),
            "gather": (BATCH, TOKENS),
        }.get(case.base, (BATCH, IN, 4, 3))
        if case.base == "gather":
            x = graph.input("ids", shape, "int64")
            self.feeds["ids"] = self.random.integers(0, VOCABULARY, shape)
        else:
            graph.input("given", shape)
            self.feeds["given"] = self.random.normal(size=shape).astype(np.float32)
            x = graph.node("Relu", ["given"], "before", "x")
            if case.told:
                graph.value("x", shape)
        h = y = self._base(x)
        made: list[BuiltBranch] = []
        if with_branches:
            # What other graphs would read as well is made once.
            self._shared = graph.constant("shared_scale", np.array(1.25, np.float32))
            for number, choice in enumerate(case.branches):
                branch = self._branch(number, choice, x)
                made.append(branch)
                terms = [branch.l, y] if choice.swapped else [y, branch.l]
                y = graph.node("Add", terms, f"sum{number}", f"y{number}")
        out = y
        if case.bias == "behind":
            out = graph.node("Add", [out, self._bias()], "bias")
        graph.node("Relu", [out], "after", "out")
        graph.output("out", ["d0", "d1", "d2", "d3"][: self._out_axes()])
        return Built(graph.model(), self.feeds, made, h, y)

    def _out_axes(self) -> int:
        return {"matmul": 3, "gemm": 2, "gather": 3}.get(self.case.base, 4)

    def _bias(self) -> str:
        shape = (1, OUT, 1, 1) if self.conv and not self.turned else (OUT,)
        values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        return self.graph.constant("bias_values", values)

    def _base(self, x: str) -> str:
        graph, inside = self.graph, self.case.bias == "inside"
        if self.case.base == "gather":
            # What is added to the rows of a table is no bias of the module.
            return graph.node("Gather", [graph.weight("W", VOCABULARY, OUT), x], "base")
        if self.conv:
            weight = graph.weight("W", OUT, IN, *self.kernel)
            bias = [graph.weight("inner_bias", OUT)] if inside else []
            product = graph.node("Conv", [x, weight, *bias], "base", **self._geometry())
            if not self.turned:
                return product
            return graph.node("Transpose", [product], "turned", perm=[0, 2, 3, 1])
        if self.case.base == "gemm":
            bias = [graph.weight("inner_bias", OUT)] if inside else []
            weight = graph.weight("W", OUT, IN)
            return graph.node("Gemm", [x, weight, *bias], "base", transB=1)
        product = graph.matmul("base", x, in_features=IN, out_features=OUT, weight="W")
        return graph.node("Add", [self._bias(), product], "base/bias") if inside else product

    def _geometry(self) -> dict[str, Any]:
        if self.case.base != "wide_conv":
            return {}
        return {"kernel_shape": self.kernel, "pads": [1, 0, 1, 1], "strides": [2, 1]}

    def _branch(self, number: int, choice: BranchChoice, x: str) -> BuiltBranch:
        inputs = VOCABULARY if self.case.base == "gather" else IN
        kernel = self.kernel if choice.way == "same" else ()
        a = self.random.normal(size=(choice.rank, inputs, *kernel)).astype(np.float32)
        b = self.random.normal(size=(OUT, choice.rank)).astype(np.float32)
        branch = BuiltBranch(a, b)
        name = f"part{number}"
        tensor = x
        if choice.casts and self.case.base != "gather":
            tensor = self.graph.node("Cast", [tensor], f"{name}/Cast", to=1)
        into, out, form = self._relayouts(choice.way)
        for place, (op, arguments) in enumerate(into):
            tensor = self._relayout(op, tensor, f"{name}/in{place}", arguments)
        tensor = self._linear(f"{name}/first", tensor, a, form, choice.stored, is_first=True)
        for place, scale in enumerate(s for s in choice.scales if s.between):
            tensor = self._scaled(f"{name}/between{place}", tensor, scale, branch, form)
        tensor = self._linear(f"{name}/second", tensor, b, form, choice.stored, is_first=False)
        behind = [s for s in choice.scales if not s.between]
        for place, scale in enumerate(behind[:1]):
            tensor = self._scaled(f"{name}/behind{place}", tensor, scale, branch, form)
        for place, (op, arguments) in enumerate(out):
            tensor = self._relayout(op, tensor, f"{name}/out{place}", arguments)
        for place, scale in enumerate(behind[1:]):
            tensor = self._scaled(f"{name}/last{place}", tensor, scale, branch, form)
        branch.l = tensor
        return branch

    def _relayouts(self, way: str) -> tuple[list[Any], list[Any], str]:
        """What lies in front of A and behind B, and the form of both."""
        if way == "rows":
            return [("Reshape", [-1, IN])], [("Reshape", [BATCH, TOKENS, OUT])], "gemm"
        if way == "rows_told":
            return [("Reshape", [BATCH * TOKENS, IN])], [("Reshape", [BATCH, -1, OUT])], "gemm"
        if way == "flat_batch":
            return [("Unsqueeze", [0])], [("Squeeze", [0])], "matmul"
        if way == "conv":
            into = [("Transpose", [0, 2, 1]), ("Unsqueeze", [-1])]
            return into, [("Squeeze", [3]), ("Transpose", [0, 2, 1])], "conv"
        if way == "squeezed_conv":
            into = [("Transpose", [0, 2, 1]), ("Reshape", [0, IN, 1, TOKENS])]
            return into, [("Transpose", [0, 2, 3, 1]), ("Squeeze", [1])], "conv"
        if way == "unsqueezed":
            return [("Unsqueeze", [1])], [("Squeeze", [-2])], "matmul"
        if way == "matmul" and self.conv:
            back = [] if self.turned else [("Transpose", [0, 3, 1, 2])]
            return [("Transpose", [0, 2, 3, 1])], back, "matmul"
        if way == "matmul":
            return [], [], "matmul"
        back = [("Transpose", [0, 2, 3, 1])] if self.turned else []
        return [], back, "conv" if self.conv else self.case.base

    def _relayout(self, op: str, tensor: str, name: str, arguments: list[int]) -> str:
        if op == "Transpose":
            return self.graph.node(op, [tensor], name, perm=arguments)
        values = self.graph.constant(f"{name}_sizes", np.array(arguments, np.int64))
        return self.graph.node(op, [tensor, values], name)

    def _linear(
        self, name: str, tensor: str, values: Array, form: str, stored: str, *, is_first: bool
    ) -> str:
        graph = self.graph
        if form == "conv":
            kernel = () if is_first and values.ndim > 2 else (1, 1)
            values = values.reshape(*values.shape, *kernel)
            weight = graph.constant(f"{name}.w", values)
            if stored == "identity":
                weight = graph.node("Identity", [weight], f"{name}.same")
            return graph.node("Conv", [tensor, weight], name, **self._own_geometry(is_first))
        if form == "gather" and is_first:
            weight = self._stored(name, values.T, stored)
            return graph.node("Gather", [weight, tensor], name)
        if form == "gemm":
            if stored == "transposed":
                return graph.node(
                    "Gemm", [tensor, graph.constant(f"{name}.w", values)], name, transB=1
                )
            zeros = graph.constant(f"{name}.zeros", np.zeros(values.shape[0], np.float32))
            return graph.node("Gemm", [tensor, self._stored(name, values.T, stored), zeros], name)
        return graph.node("MatMul", [tensor, self._stored(name, values.T, stored)], name)

    def _own_geometry(self, is_first: bool) -> dict[str, Any]:
        return self._geometry() if is_first and self.conv else {}

    def _stored(self, name: str, values: Array, stored: str) -> str:
        graph = self.graph
        if stored == "transposed":
            weight = graph.constant(f"{name}.w", np.ascontiguousarray(values.T))
            return graph.node("Transpose", [weight], f"{name}.turned", perm=[1, 0])
        weight = graph.constant(f"{name}.w", np.ascontiguousarray(values))
        return weight if stored == "plain" else graph.node("Identity", [weight], f"{name}.same")

    def _scaled(
        self, name: str, tensor: str, scale: ScaleChoice, branch: BuiltBranch, form: str
    ) -> str:
        rank = branch.a.shape[0]
        size = rank if scale.per_rank else 1
        values = self.random.normal(size=size).astype(np.float32)
        shape = (size, 1, 1) if form == "conv" else (size,)
        operand = self._operand(f"{name}/scale", values, shape, scale, branch)
        terms = [operand, tensor] if scale.swapped else [tensor, operand]
        return self.graph.node("Mul", terms, name)

    def _operand(
        self,
        name: str,
        values: Array,
        shape: tuple[int, ...],
        scale: ScaleChoice,
        branch: BuiltBranch,
    ) -> str:
        graph = self.graph
        if scale.source == "shared" and not scale.per_rank:
            branch.scales.append(np.array([1.25], np.float32))
            return graph.node("Identity", [self._shared], name)
        if scale.source == "expanded":
            matrix = self.random.normal(size=(2, len(values))).astype(np.float32)
            strengths = np.array([0.5, -1.5], np.float32)
            if "strengths" not in self.feeds:
                graph.input("strengths", (2,))
                self.feeds["strengths"] = strengths
            branch.scales.append(strengths @ matrix)
            made = graph.node(
                "MatMul", ["strengths", graph.constant(f"{name}.E", matrix)], f"{name}.s"
            )
            sizes = graph.constant(f"{name}.shape", np.array(shape, np.int64))
            return graph.node("Reshape", [made, sizes], name) if len(shape) > 1 else made
        branch.scales.append(values)
        if scale.source == "node":
            value = _tensor(values.reshape(shape))
            return graph.node("Constant", [], name, value=value)
        if scale.source == "number":
            return graph.node("Constant", [], name, value_float=float(values[0]))
        if scale.source in ("input", "default"):
            graph.input(name, shape)
            if scale.source == "input":
                self.feeds[name] = values.reshape(shape)
            else:
                graph.constant(name, values.reshape(shape))
            return name
        if scale.source == "cast":
            wide = graph.constant(f"{name}.double", values.reshape(shape).astype(np.float16))
            branch.scales[-1] = values.astype(np.float16).astype(np.float32)
            return graph.node("Cast", [wide], name, to=1)
        if scale.source == "reshaped":
            sizes = graph.constant(f"{name}.sizes", np.array([-1, *shape[1:]], np.int64))
            return graph.node("Reshape", [graph.constant(f"{name}.v", values), sizes], name)
        if scale.source == "unsqueezed" and len(shape) > 1:
            axes = graph.constant(f"{name}.axes", np.array([1, 2], np.int64))
            return graph.node("Unsqueeze", [graph.constant(f"{name}.v", values), axes], name)
        return graph.constant(name, values.reshape(shape))


def _tensor(values: Array) -> Any:
    return numpy_helper.from_array(values)
