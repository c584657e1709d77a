"""Vectors at attach points: y = g * (W (h * x) + b) + B (s * (A x)) + c, in every form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lora_quant.errors import GraphError
from lora_quant.graph.base.activations import float_activations
from lora_quant.graph.branching.branches import AlphaLayout
from lora_quant.graph.branching.updatable_weights import Role, base_outputs, updatable_weights
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.records import BranchedGraph, Vector
from lora_quant.graph.values.weight_layouts import branch_layouts
from tests.builders import DTYPES, GraphBuilder, attention, save
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
from tests.graph.helpers import (
    all_points,
    branch,
    opened,
    printed,
    put,
    request,
    resolve,
    run,
    undone,
    with_extras,
)
from tests.graph.numerics import Array, branch_value, count_terms, error_bound
from tests.graph.test_branches import check_golden, mixed, rich_model, serialize_of

COMBINATIONS = ["g", "h", "c", "gh", "gc", "hc", "ghc"]


@pytest.mark.parametrize("vectors", COMBINATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_vectors_around_a_branch(tmp_path: Path, case: Case, vectors: str) -> None:
    check_case(tmp_path, case, vectors)


@pytest.mark.parametrize("vectors", COMBINATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_vectors_without_low_rank(tmp_path: Path, case: Case, vectors: str) -> None:
    check_case(tmp_path, case, vectors, low_rank=False)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_vectors_in_the_rank_layout(tmp_path: Path, case: Case) -> None:
    check_case(tmp_path, case, "ghc", layout="rank")


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("vectors", ["ghc", "gc", "h"])
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[8], CASES[13]], ids=lambda c: c.name)
def test_vectors_of_float16(tmp_path: Path, case: Case, vectors: str, low_rank: bool) -> None:
    check_case(tmp_path, case, vectors, dtype="float16", low_rank=low_rank)


def vector_values(branched: BranchedGraph, seed: int) -> dict[Vector, Array]:
    """One random vector of every kind that the graph has, `[in]` or `[out]`; none is near zero."""
    random = np.random.default_rng(seed)
    values = {}
    for made in branched.vectors:
        sign = random.choice([-1.0, 1.0], size=max(made.weight.shape))
        value = sign * random.uniform(0.5, 2.0, size=sign.shape)
        values[made.vector] = value.astype(DTYPES[made.weight.dtype])
    return values


def check_case(
    folder: Path,
    case: Case,
    vectors: str,
    *,
    layout: AlphaLayout = "slot",
    dtype: str = "float32",
    low_rank: bool = True,
) -> None:
    model = built(case, dtype)
    base = opened(model, folder)
    points = [with_extras(point, vectors, low_rank=low_rank) for point in all_points(base)]
    branched = branch(base, points, max_rank=RANK, alpha_layout=layout)
    after = base.model.proto
    onnx.checker.check_model(after, full_check=True)
    assert {made.vector for made in branched.vectors} == set(map(Vector, vectors))
    assert serialize_of(undone(after, branched)) == serialize_of(model)
    values = vector_values(branched, 3)
    filled = {v.weight.name: values[v.vector].reshape(v.weight.shape) for v in branched.vectors}
    x = np.random.default_rng(2).normal(size=case.x).astype(DTYPES[dtype])
    feeds: dict[str, Array] = {"x": x}
    ones = np.ones(1)
    g, h, c = (values.get(vector, ones) for vector in (Vector.G, Vector.H, Vector.C))
    c = c if "c" in vectors else np.zeros(1)
    # x has its features where y has its own, except in Gemm's transA, whose x is [in, rows].
    is_column = case.x == (7, 4)
    over_x = h.reshape(-1, 1) if is_column else case.form.over_channels(h, x)
    scaled = (x * over_x).astype(x.dtype) if "h" in vectors else x
    (plain,) = run(model, {"x": scaled})
    g, c = (case.form.over_channels(v.astype(np.float64), plain) for v in (g, c))
    wanted = g * plain.astype(np.float64) + c
    (linear,) = base.catalog.linears.values()
    # Products in one output, a bias, and the factor of a Gemm.
    base_terms = linear.in_features * math.prod(linear.conv.kernel if linear.conv else ()) + 2
    magnitude = np.abs(g) * base_magnitude(case, model, scaled)
    # Both runs compute the base.
    bound = 2 * error_bound(magnitude, base_terms, dtype)
    added = 0.0 * wanted
    if low_rank:
        (made,) = branched.branches
        A, B = factors(made, 1)
        weights, alpha, s = strengths(branched)
        filled |= stored(made, A, B) | weights
        feeds |= alpha
        wanted = wanted + branch_value(case.form, x, A, B, s)
        added = branch_value(case.form, np.abs(x), np.abs(A), np.abs(B), np.abs(s))
        bound += error_bound(added, count_terms(A, B, len(SLOTS)), dtype)
    else:
        assert branched.scale is None
        assert [v.name for v in after.graph.input] == ["x"]
    # The product with g (of the base's result or, fused, of its weight) and the sums with c and l.
    bound += error_bound(magnitude + np.abs(c) + added, 3, dtype)
    (y,) = run(put(after, filled), feeds)
    assert y.shape == plain.shape
    assert np.all(np.abs(y - wanted) <= bound)
    (unchanged,) = run(model, {"x": x})
    assert np.abs(wanted - unchanged).max() > 20 * bound.max()


def test_a_graph_with_vectors_reads_like_its_golden(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    asked = {"conv": "ghc", "point": "h", "first": "gc", "second": "g"}
    points = [
        with_extras(point, asked[point.name], low_rank=point.name in ("conv", "first"))
        for point in all_points(base)
    ]
    branch(base, points)
    check_golden("vectors.txt", printed(base.model.proto.graph))


def test_every_part_of_a_fused_projection_has_its_rows_of_g_and_c(tmp_path: Path) -> None:
    model = attention(layers=1, style="packed").model()
    base = opened(model, tmp_path)
    prefix = "model.layers.0.self_attn"
    points = resolve(
        base,
        [request(f"{prefix}.{leaf}", 8, size) for leaf, size in (("v_proj", 4), ("q_proj", 8))],
    ).points
    branched = branch(base, [with_extras(point, "gc") for point in points], max_rank=RANK)
    for m in (model, base.model.proto):
        shape: list[int | str | None] = ["batch", "sequence", 16]
        y = onnx.helper.make_tensor_value_info(points[0].output, TensorProto.FLOAT, shape)
        m.graph.output.append(y)
    g = np.ones(16, np.float32)
    c = np.zeros(16, np.float32)
    g[:8], c[12:] = 2.0, 0.5
    names = {made.vector: made.weight.name for made in branched.vectors}
    x = np.random.default_rng(4).normal(size=(2, 3, 8)).astype(np.float32)
    _, plain = run(model, {"x": x})
    after = put(base.model.proto, {names[Vector.G]: g, names[Vector.C]: c})
    _, got = run(after, {"x": x, "lora_alpha": np.ones(2, np.float32)})
    # Doubling is exact; the branch is zero; one sum is rounded, here as there.
    assert np.array_equal(got, plain * g + c)


def test_points_that_share_an_x_have_an_h_each(tmp_path: Path) -> None:
    model = attention(layers=1).model()
    base = opened(model, tmp_path)
    asked = {"q_proj": "h", "k_proj": "h", "v_proj": "", "o_proj": ""}
    points = [
        with_extras(p, asked[p.name.rpartition(".")[2]], low_rank=False) for p in all_points(base)
    ]
    branched = branch(base, points)
    q, k = branched.vectors
    assert (q.input, k.input) == ("x", "x")
    reads = {n.name: n.input[0] for n in base.model.proto.graph.node if n.op_type == "MatMul"}
    prefix = "/model/layers.0/self_attn"
    assert reads[f"{prefix}/q_proj/MatMul"] == q.output == f"{prefix}/q_proj/lora_h/Mul_output_0"
    assert reads[f"{prefix}/k_proj/MatMul"] == k.output
    assert reads[f"{prefix}/v_proj/MatMul"] == "x"


def test_a_point_that_gets_nothing_is_left_alone(tmp_path: Path) -> None:
    model = mixed().model()
    base = opened(model, tmp_path)
    branched = branch(base, [with_extras(p, low_rank=False) for p in all_points(base)])
    assert (branched.branches, branched.vectors, updatable_weights(branched)) == ((), (), ())
    assert serialize_of(base.model.proto) == serialize_of(model)


def test_without_any_branch_the_name_of_alpha_may_be_taken(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("lora_alpha", ("N", 4))
    graph.output(graph.matmul("/fc/MatMul", x, in_features=4, out_features=3, output="y"), ("N", 3))
    base = opened(graph.model(), tmp_path)
    branched = branch(base, [with_extras(p, "g", low_rank=False) for p in all_points(base)])
    assert branched.scale is None
    check_model_file(save(base.model.proto, tmp_path / "branched.onnx"))


def test_metadata_subgraphs_and_annotations_stay(tmp_path: Path) -> None:
    before = rich_model()
    base = opened(before, tmp_path)
    branched = branch(base, [with_extras(p, "ghc") for p in all_points(base)])
    after = base.model.proto
    onnx.checker.check_model(after, full_check=True)
    assert serialize_of(undone(after, branched)) == serialize_of(before)


@pytest.mark.parametrize(("opset", "ir"), [(7, 4), (13, 7), (21, 10)])
def test_every_opset_passes_the_checker(tmp_path: Path, opset: int, ir: int) -> None:
    base = opened(mixed().model(opset=opset, ir_version=ir), tmp_path)
    branch(base, [with_extras(p, "ghc") for p in all_points(base)])
    check_model_file(save(base.model.proto, tmp_path / "branched.onnx"))


def test_bfloat16_vectors_pass_the_checker_and_are_ones(tmp_path: Path) -> None:
    base = opened(attention(dtype="bfloat16", layers=1).model(), tmp_path)
    branched = branch(base, [with_extras(p, "gh") for p in all_points(base)])
    check_model_file(save(base.model.proto, tmp_path / "branched.onnx"))
    stored_now = {t.name: t for t in base.model.proto.graph.initializer}
    for made in branched.vectors:
        values = onnx.numpy_helper.to_array(stored_now[made.weight.name])
        assert values.shape == made.weight.shape
        assert np.all(values.astype(np.float32) == 1)


def test_updatable_weights_come_point_by_point(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    asked = {"conv": "ghc", "point": "h", "first": "gc", "second": ""}
    points = [
        with_extras(point, asked[point.name], low_rank=point.name != "point")
        for point in all_points(base)
    ]
    found = updatable_weights(branch(base, points))
    assert [(w.attach.name if w.attach else "", w.role, w.record.shape) for w in found] == [
        ("conv", Role.A_WEIGHT, (4, 3, 3, 3)),
        ("conv", Role.B_WEIGHT, (4, 4, 1, 1)),
        ("conv", Role.H, (1, 3, 1, 1)),
        ("conv", Role.G, (1, 4, 1, 1)),
        ("conv", Role.C, (1, 4, 1, 1)),
        ("point", Role.H, (1, 4, 1, 1)),
        ("first", Role.A_WEIGHT, (64, 4)),
        ("first", Role.B_WEIGHT, (4, 6)),
        ("first", Role.G, (6,)),
        ("first", Role.C, (6,)),
        ("second", Role.A_WEIGHT, (6, 4)),
        ("second", Role.B_WEIGHT, (4, 5)),
        ("", Role.EXPANSION, (2, 4)),
    ]


def test_the_base_outputs_are_found_under_their_new_names(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    asked = {"conv": "gc", "point": "h", "first": "c", "second": ""}
    points = [
        with_extras(point, asked[point.name], low_rank=point.name in ("conv", "second"))
        for point in all_points(base)
    ]
    found = base_outputs(branch(base, points))
    assert found == {
        "/conv/Conv_output_0": "/conv/Conv_output_0_base",
        "/first/Add_output_0": "/first/Add_output_0_base",
        "y": "y_base",
    }
    produced = {name for node in base.model.proto.graph.node for name in node.output}
    assert set(found.values()) | set(found) <= produced


def test_vectors_have_layouts_and_activations(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    branched = branch(base, [with_extras(p, "ghc") for p in all_points(base)])
    layouts = {layout.name: layout for layout in branch_layouts(branched)}
    assert set(layouts) == {weight.record.name for weight in updatable_weights(branched)}
    for made in branched.vectors:
        layout = layouts[made.weight.name]
        assert layout.block_axis is None
        assert layout.shape[layout.channel_axis] == max(made.weight.shape)
        assert made.output in float_activations(base)
        assert made.input in float_activations(base)


def test_a_taken_name_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    graph = attention(layers=1)
    graph.weight("model.layers.0.self_attn.o_proj.lora_c.weight", 2, 2)
    base = opened(graph.model(), tmp_path)
    before = serialize_of(base.model.proto)
    with pytest.raises(GraphError, match=r"already has .* 'model\.layers\.0\.self_attn\.o_proj"):
        branch(base, [with_extras(p, "gc") for p in all_points(base)])
    assert serialize_of(base.model.proto) == before
