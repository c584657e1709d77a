"""One linear node of every form, and the values of one use case for the branch that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.graph.records import Form as BranchForm
from tests.builders import DTYPES, GraphBuilder
from tests.graph.helpers import put, run
from tests.graph.numerics import Array, Convolution, Form, Linear

RANK = 5
SLOTS = ((0, 2, 0.5), (2, 3, 1.75))  # start, rank, scale: lora_alpha / r
ALPHA = np.array([0.75, -1.5], np.float32)


@dataclass(frozen=True)
class Case:
    """One linear node: how it is built, what x is, what it computes."""

    name: str
    build: Callable[[GraphBuilder], str]
    x: tuple[int, ...]
    form: Form


def matmul(g: GraphBuilder) -> str:
    return g.matmul("/fc/MatMul", "x", in_features=7, out_features=6)


def matmul_bias(g: GraphBuilder) -> str:
    return g.node("Add", [matmul(g), g.weight("fc.bias", 6)], "/fc/Add")


def transposed_weight(g: GraphBuilder) -> str:
    w = g.node("Transpose", [g.weight("fc.weight", 6, 7)], "/fc/Transpose", perm=[1, 0])
    return g.node("MatMul", ["x", w], "/fc/MatMul")


def gemm(
    trans_a: int, trans_b: int, *, alpha: float = 1.0, beta: float = 1.0, c: bool = True
) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        inputs = ["x", g.weight("fc.weight", *((6, 7) if trans_b else (7, 6)))]
        if c:
            inputs.append(g.weight("fc.bias", 6))
        return g.node(
            "Gemm", inputs, "/fc/Gemm", transA=trans_a, transB=trans_b, alpha=alpha, beta=beta
        )

    return build


def conv(*kernel: int, bias: bool = True, **attributes: Any) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        inputs = ["x", g.weight("fc.weight", 6, 3, *kernel)]
        if bias:
            inputs.append(g.weight("fc.bias", 6))
        return g.node("Conv", inputs, "/fc/Conv", **attributes)

    return build


def conv_with_add(g: GraphBuilder) -> str:
    h = conv(3, 3, bias=False, pads=[1, 1, 1, 1])(g)
    return g.node("Add", [h, g.weight("fc.bias", 1, 6, 1, 1)], "/fc/Add")


CASES = [
    Case("matmul_2d", matmul, (4, 7), Linear()),
    Case("matmul_3d", matmul, (2, 4, 7), Linear()),
    Case("matmul_4d", matmul, (2, 1, 4, 7), Linear()),
    Case("matmul_bias", matmul_bias, (2, 4, 7), Linear()),
    Case("transposed_weight", transposed_weight, (4, 7), Linear()),
    Case("gemm", gemm(0, 0), (4, 7), Linear()),
    Case("gemm_trans_b", gemm(0, 1, alpha=1.0, beta=0.5), (4, 7), Linear()),
    Case("gemm_trans_a", gemm(1, 0), (7, 4), Linear(transposed=True)),
    Case("gemm_trans_ab", gemm(1, 1, beta=2.0), (7, 4), Linear(transposed=True)),
    Case("gemm_alpha", gemm(0, 1, alpha=0.25), (4, 7), Linear()),
    Case("gemm_without_c", gemm(0, 1, c=False), (4, 7), Linear()),
    Case("conv1d_1", conv(1), (2, 3, 5), Convolution((1,), (0, 0))),
    Case("conv1d_3", conv(3, pads=[2, 0]), (2, 3, 5), Convolution((1,), (2, 0))),
    Case("conv2d_1x1", conv(1, 1), (2, 3, 4, 5), Convolution((1, 1), (0, 0, 0, 0))),
    Case(
        "conv2d_1x1_stride", conv(1, 1, strides=[2, 1]), (2, 3, 4, 5), Convolution((2, 1), (0,) * 4)
    ),
    Case(
        "conv2d_3x2",
        conv(3, 2, strides=[2, 1], pads=[1, 0, 2, 1]),
        (2, 3, 5, 6),
        Convolution((2, 1), (1, 0, 2, 1)),
    ),
    Case(
        "conv2d_same_upper",
        conv(3, 2, auto_pad="SAME_UPPER", strides=[2, 1]),
        (1, 3, 5, 6),
        Convolution((2, 1), (1, 0, 1, 1)),
    ),
    Case(
        "conv2d_same_lower",
        conv(2, 2, auto_pad="SAME_LOWER"),
        (1, 3, 5, 6),
        Convolution((1, 1), (1, 1, 0, 0)),
    ),
    Case("conv2d_valid", conv(3, 3, auto_pad="VALID"), (1, 3, 5, 6), Convolution((1, 1), (0,) * 4)),
    Case("conv2d_bias_add", conv_with_add, (1, 3, 5, 6), Convolution((1, 1), (1,) * 4)),
    Case("conv3d", conv(1, 2, 1), (1, 3, 2, 3, 2), Convolution((1, 1, 1), (0,) * 6)),
]


def built(case: Case, dtype: str = "float32", opset: int = 17) -> ModelProto:
    graph = GraphBuilder(dtype)
    graph.input("x", case.x)
    y = case.build(graph)
    graph.output(y, [f"d{n}" for n in range(len(case.x))])
    return graph.model(opset=opset)


def factors(made: Branch, seed: int) -> tuple[Array, Array]:
    """Random A `[parts * R, in, *kernel]` and B `[out, parts * R]` in float32."""
    random = np.random.default_rng(seed)
    linear = made.attach.linear
    kernel = linear.conv.kernel if linear.conv else ()
    rank = RANK * len(made.attach.parts)
    A = random.normal(size=(rank, linear.in_features, *kernel))
    B = random.normal(size=(linear.out_features, rank))
    dtype = DTYPES[linear.dtype]
    return A.astype(dtype), B.astype(dtype)


def stored(made: Branch, A: Array, B: Array) -> dict[str, Array]:
    """Factors in the layout of the graph."""
    if made.attach.linear.form is BranchForm.CONV:
        return {
            made.a_weight.name: A,
            made.b_weight.name: B.reshape(*B.shape, *(1,) * (A.ndim - 2)),
        }
    return {made.a_weight.name: A.T.copy(), made.b_weight.name: B.T.copy()}


def expansion() -> Array:
    """E `[slots, R]` of the use case that `SLOTS` tells."""
    E = np.zeros((len(SLOTS), RANK), np.float32)
    for slot, (start, rank, scale) in enumerate(SLOTS):
        E[slot, start : start + rank] = scale
    return E


def strengths(branched: BranchedGraph) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Initializers, feeds, and the s `[R]` that they amount to."""
    E = expansion()
    s = ALPHA.astype(np.float64) @ E.astype(np.float64)
    record = branched.scale
    assert record is not None
    if record.expansion is None:
        return {}, {record.alpha.name: s.astype(np.float32).reshape(record.alpha.shape)}, s
    return {record.expansion.name: E}, {record.alpha.name: ALPHA}, s


def base_magnitude(case: Case, model: ModelProto, x: Array) -> Array:
    """Sum of the absolute values of all terms of the base."""
    absolute = {t.name: np.abs(numpy_helper.to_array(t)) for t in model.graph.initializer}
    (result,) = run(put(model, absolute), {"x": np.abs(x)})
    return result.astype(np.float64)
