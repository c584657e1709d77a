"""The branches that this package builds are recognised on every form of base, in linear time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.branching.branches import AlphaLayout
from lora_quant.graph.exported.branch_values import scale_values, weight_values
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph, ScalePlace, ScaleSource
from lora_quant.graph.records import BranchedGraph
from tests.builders import GraphBuilder, attention, save
from tests.graph import quantized_bases
from tests.graph.cases import CASES, Case, built
from tests.graph.helpers import all_points, branch, opened, put, request, resolve
from tests.timing import cpu_seconds

RANK, SLOTS = 4, 2


def again(base: BaseGraph, folder: Path) -> ExportedGraph:
    return recognise_branches(open_base(save(base.model.proto, folder / "branched.onnx")))


def assert_found(found: ExportedGraph, branched: BranchedGraph) -> None:
    assert found.near == ()
    assert len(found.points) == len(branched.branches)
    for point, made in zip(found.points, branched.branches, strict=True):
        (taken,) = point.branches
        assert point.linear.node == made.attach.linear.node
        assert (taken.a.product, taken.m, taken.l) == (made.a, made.m, made.l)
        assert taken.h == made.h
        assert taken.rank == made.a_weight.shape[made.a_weight.shape.index(RANK)]
        assert weight_values(found.graph, taken.a).shape[0] == RANK
        assert weight_values(found.graph, taken.b).shape[:2] == (point.linear.out_features, RANK)


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_branch_on_every_form_of_base_is_found(
    tmp_path: Path, case: Case, layout: AlphaLayout
) -> None:
    base = opened(built(case), tmp_path)
    branched = branch(base, all_points(base), max_rank=RANK, slot_count=SLOTS, alpha_layout=layout)
    found = again(base, tmp_path)
    assert_found(found, branched)
    (scale,) = found.points[0].branches[0].scales
    assert (scale.tensor, scale.size, scale.place) == ("lora_alpha", RANK, ScalePlace.BETWEEN)
    values = scale_values(found.graph, scale)
    if layout == "slot":
        assert (scale.source, scale.expansion) == (ScaleSource.EXPANDED, "lora_alpha.expansion")
        assert values is not None
        assert np.array_equal(values, np.zeros((SLOTS, RANK)))
    else:
        assert (scale.source, scale.expansion) == (ScaleSource.INPUT, "")


@pytest.mark.parametrize("base", quantized_bases.BASES, ids=lambda base: base.name)
def test_a_float_branch_on_every_quantized_base_is_found(
    tmp_path: Path, base: quantized_bases.Base
) -> None:
    opened_base = opened(quantized_bases.built(base)[0], tmp_path)
    branched = branch(opened_base, all_points(opened_base), max_rank=RANK, slot_count=SLOTS)
    assert_found(again(opened_base, tmp_path), branched)


def test_values_may_lie_in_a_data_file(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 6))
    h = graph.matmul("base", x, in_features=6, out_features=5)
    low = graph.matmul("first", x, in_features=6, out_features=3, weight="A")
    scale = graph.constant("scale", np.array([[0.5, 2.0, -1.0]], np.float32))
    shape = graph.constant("shape", np.array([3]))
    scale = graph.node("Reshape", [scale, shape], "flat")
    low = graph.node("Mul", [low, scale], "scaled")
    l_ = graph.matmul("second", low, in_features=3, out_features=5, weight="B")
    graph.output(graph.node("Add", [h, l_], "sum"), ("N", 5))
    found = recognise_branches(opened(graph.model(), tmp_path, external=True))
    ((taken,),) = (point.branches for point in found.points)
    assert np.array_equal(weight_values(found.graph, taken.a), graph.weights["A"].T)
    assert np.array_equal(weight_values(found.graph, taken.b), graph.weights["B"].T)
    values = scale_values(found.graph, taken.scales[0])
    assert values is not None
    assert values.tolist() == [0.5, 2.0, -1.0]


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_the_parts_of_a_fused_projection_read_one_scale(
    tmp_path: Path, layout: AlphaLayout
) -> None:
    base = opened(attention(layers=1, style="packed").model(), tmp_path)
    leaves = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
    requests = [request(f"model.layers.0.attn.{leaf}", 8, size) for leaf, size in leaves.items()]
    points = resolve(base, requests).points
    branch(base, points, max_rank=RANK, slot_count=SLOTS, alpha_layout=layout)
    model = base.model.proto
    matrix = np.arange(SLOTS * RANK, dtype=np.float32).reshape(SLOTS, RANK)
    if layout == "slot":
        model = put(model, {"lora_alpha.expansion": matrix})
    found = recognise_branches(open_base(save(model, tmp_path / "branched.onnx")))
    assert found.near == ()
    (taken,) = (taken for point in found.points for taken in point.branches)
    assert (taken.rank, taken.scales[0].size) == (3 * RANK, 3 * RANK)
    values = scale_values(found.graph, taken.scales[0])
    if layout == "rank":
        assert values is None
        return
    assert values is not None
    assert np.array_equal(values, np.concatenate([matrix] * 3, axis=1))


LEAVES, FILLERS = 7, 5


def make_large(path: Path, layers: int) -> Path:
    """Two chained branches at each module; one scale, of an input, for all."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    strengths = graph.input("strengths", (3,))
    scale = graph.node("MatMul", [strengths, graph.weight("E", 3, 2)], "scale")
    for module in range(layers * LEAVES):
        h = graph.matmul(f"/{module}/W", x, in_features=4, out_features=4)
        for number in range(2):
            name = f"/{module}/{number}"
            low = graph.matmul(f"{name}/a", x, in_features=4, out_features=2)
            low = graph.node("Mul", [low, scale], f"{name}/mul")
            l_ = graph.matmul(f"{name}/b", low, in_features=2, out_features=4)
            h = graph.node("Add", [h, l_], f"{name}/add")
        x = h
        for number in range(FILLERS):
            x = graph.node("Relu", [x], f"/{module}/relu{number}")
    graph.output(x, ("N", 4))
    return graph.save(path)


def seconds(path: Path, layers: int) -> float:
    graph = open_base(make_large(path, layers))

    def step() -> None:
        found = recognise_branches(graph)
        assert len(found.points) == layers * LEAVES
        assert all(len(point.branches) == 2 for point in found.points)

    return cpu_seconds(step)


def test_time_grows_with_the_branches(tmp_path: Path) -> None:
    small, large = (
        min(seconds(tmp_path / "any.onnx", layers) for _ in range(3)) for layers in (20, 80)
    )
    # Measured 0.4 s for 1120 branches among 7842 nodes. Four times the nodes; a quadratic step
    # would take sixteen times as long.
    assert large < 10 * small + 0.1
    assert large < 4.0
