"""Branched graphs in ONNX Runtime against float64, for every form of a linear node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.graph.branches import AlphaLayout
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.graph.records import Form as BranchForm
from tests.builders import DTYPES, GraphBuilder, attention
from tests.graph.helpers import all_points, branch, opened, put, request, resolve, run
from tests.graph.numerics import (
    Array,
    Convolution,
    Form,
    Linear,
    branch_value,
    count_terms,
    error_bound,
)

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


def expansion(branched: BranchedGraph) -> Array:
    E = np.zeros((len(SLOTS), RANK), np.float32)
    for slot, (start, rank, scale) in enumerate(SLOTS):
        E[slot, start : start + rank] = scale
    return E


def strengths(branched: BranchedGraph) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Initializers, feeds, and the s `[R]` that they amount to."""
    E = expansion(branched)
    s = ALPHA.astype(np.float64) @ E.astype(np.float64)
    record = branched.scale
    if record.expansion is None:
        return {}, {record.alpha.name: s.astype(np.float32).reshape(record.alpha.shape)}, s
    return {record.expansion.name: E}, {record.alpha.name: ALPHA}, s


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_branch_adds_b_s_a_x(tmp_path: Path, case: Case, layout: AlphaLayout) -> None:
    check_case(tmp_path, case, layout, "float32")


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("case", CASES[:3] + CASES[13:14], ids=lambda c: c.name)
def test_a_float16_branch_adds_b_s_a_x(tmp_path: Path, case: Case, layout: AlphaLayout) -> None:
    check_case(tmp_path, case, layout, "float16")


@pytest.mark.parametrize("opset", [7, 11, 13, 21])
@pytest.mark.parametrize("case", [CASES[3], CASES[8], CASES[15]], ids=lambda c: c.name)
def test_a_branch_is_the_same_in_every_opset(tmp_path: Path, case: Case, opset: int) -> None:
    check_case(tmp_path, case, "slot", "float32", opset)


def check_case(folder: Path, case: Case, layout: AlphaLayout, dtype: str, opset: int = 17) -> None:
    model = built(case, dtype, opset)
    base = opened(model, folder)
    branched = branch(base, all_points(base), max_rank=RANK, alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    (made,) = branched.branches
    A, B = factors(made, 1)
    weights, feeds, s = strengths(branched)
    x = np.random.default_rng(2).normal(size=case.x).astype(DTYPES[dtype])
    (plain,) = run(model, {"x": x})
    (y,) = run(put(base.model.proto, stored(made, A, B) | weights), {"x": x} | feeds)
    wanted = plain.astype(np.float64) + branch_value(case.form, x, A, B, s)
    magnitude = branch_value(case.form, np.abs(x), np.abs(A), np.abs(B), np.abs(s))
    # Both runs compute the base, with at most as many roundings as terms and a bias.
    base_terms = int(np.prod(A.shape[1:])) + 2
    bound = error_bound(magnitude, count_terms(A, B, len(SLOTS)), dtype)
    bound += 2 * error_bound(base_magnitude(case, model, x), base_terms, dtype)
    assert y.shape == plain.shape
    assert np.all(np.abs(y - wanted) <= bound)
    # The bound does not hide what the branch adds.
    assert np.abs(wanted - plain).max() > 20 * bound.max()


def base_magnitude(case: Case, model: ModelProto, x: Array) -> Array:
    """Sum of the absolute values of all terms of the base."""
    absolute = {t.name: np.abs(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
    (result,) = run(put(model, absolute), {"x": np.abs(x)})
    return result.astype(np.float64)


def test_the_gain_of_a_gemm_is_recorded(tmp_path: Path) -> None:
    # Who fills B multiplies it by alpha: the module's W x is scaled by it as well.
    base = opened(built(CASES[9]), tmp_path)
    (linear,) = base.catalog.linears.values()
    assert (linear.gain, linear.weight_is_in_out) == (0.25, False)


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_parts_of_a_packed_projection_own_their_rows_and_ranks(
    tmp_path: Path, layout: AlphaLayout
) -> None:
    model = attention(layers=1, style="packed").model()
    base = opened(model, tmp_path)
    prefix = "model.layers.0.self_attn"
    resolution = resolve(
        base,
        [request(f"{prefix}.{leaf}", 8, size) for leaf, size in (("v_proj", 4), ("q_proj", 8))],
    )
    branched = branch(base, resolution.points, max_rank=RANK, alpha_layout=layout)
    (made,) = branched.branches
    assert [(p.module, p.offset, p.size) for p in made.attach.parts] == [
        (f"{prefix}.q_proj", 0, 8),
        (f"{prefix}.v_proj", 12, 4),
    ]
    A, B = factors(made, 3)
    placed = np.zeros_like(B)
    for number, part in enumerate(made.attach.parts):
        rows = slice(part.offset, part.offset + part.size)
        ranks = slice(number * RANK, (number + 1) * RANK)
        placed[rows, ranks] = B[rows, ranks]
    weights, feeds, s = strengths(branched)
    x = np.random.default_rng(4).normal(size=(2, 3, 8)).astype(np.float32)
    for m in (model, base.model.proto):
        extra = helper.make_tensor_value_info(made.y, TensorProto.FLOAT, ["batch", "sequence", 16])
        m.graph.output.append(extra)
    _, plain = run(model, {"x": x})
    _, y = run(put(base.model.proto, stored(made, A, placed) | weights), {"x": x} | feeds)
    wanted = plain.astype(np.float64)
    for number, part in enumerate(made.attach.parts):
        ranks = slice(number * RANK, (number + 1) * RANK)
        rows = slice(part.offset, part.offset + part.size)
        wanted[..., rows] += branch_value(Linear(), x, A[ranks], B[rows, ranks], s)
    magnitude = branch_value(Linear(), np.abs(x), np.abs(A), np.abs(B), np.tile(np.abs(s), 2))
    # Both compute the base: 8 terms of x and of W, which are below 4 and 2.
    bound = error_bound(magnitude, count_terms(A, B, 2), "float32") + 2 * 8 * 2.0**-24 * 64
    assert np.all(np.abs(y - wanted) <= bound)
    assert np.array_equal(y[..., 8:12], plain[..., 8:12])


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_forms_of_several_ranks_live_in_one_graph(tmp_path: Path, layout: AlphaLayout) -> None:
    graph = GraphBuilder()
    graph.input("x", (1, 3, 4, 4))
    graph.input("z", (1, 3, 8))
    y2 = graph.node("Conv", ["x", graph.weight("two.weight", 2, 3, 3, 3)], "/two/Conv")
    y1 = graph.node("Conv", ["z", graph.weight("one.weight", 2, 3, 3)], "/one/Conv")
    y0 = graph.matmul("/zero/MatMul", "z", in_features=8, out_features=2)
    for y, shape in ((y2, (1, 2, 2, 2)), (y1, (1, 2, 6)), (y0, (1, 3, 2))):
        graph.output(y, shape)
    model = graph.model()
    base = opened(model, tmp_path)
    branched = branch(base, all_points(base), max_rank=RANK, alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    weights, feeds, s = strengths(branched)
    filled = dict(weights)
    made = {b.attach.name: b for b in branched.branches}
    values = {name: factors(b, seed) for seed, (name, b) in enumerate(made.items())}
    for name, (A, B) in values.items():
        filled |= stored(made[name], A, B)
    random = np.random.default_rng(7)
    inputs: dict[str, Array] = {
        "x": random.normal(size=(1, 3, 4, 4)).astype(np.float32),
        "z": random.normal(size=(1, 3, 8)).astype(np.float32),
    }
    plain = run(model, inputs)
    got = run(put(base.model.proto, filled), inputs | feeds)
    forms: dict[str, tuple[Form, str]] = {
        "two": (Convolution((1, 1), (0,) * 4), "x"),
        "one": (Convolution((1,), (0, 0)), "z"),
        "zero": (Linear(), "z"),
    }
    for number, (name, (form, x)) in enumerate(forms.items()):
        A, B = values[name]
        wanted = plain[number] + branch_value(form, inputs[x], A, B, s)
        magnitude = branch_value(form, np.abs(inputs[x]), np.abs(A), np.abs(B), np.abs(s))
        # Twice the base: up to 27 terms of factors below 4.
        bound = error_bound(magnitude, count_terms(A, B, 2), "float32") + 2 * 27 * 2.0**-24 * 432
        assert np.all(np.abs(got[number] - wanted) <= bound), name
