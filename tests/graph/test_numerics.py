"""Branched graphs in ONNX Runtime against float64, for every form of a linear node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lora_quant.graph.branching.branches import AlphaLayout
from tests.builders import DTYPES, GraphBuilder, attention
from tests.graph.cases import (
    CASES,
    RANK,
    SLOTS,
    Case,
    base_magnitude,
    built,
    factors,
    stored,
    strengths,
)
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
