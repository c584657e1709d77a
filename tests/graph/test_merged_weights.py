"""Merged graphs in ONNX Runtime against g * base(h * x) + delta x + c, and what stays as it was."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.merging.merged_weights import write_merged
from lora_quant.graph.records import AttachPoint
from tests.builders import DTYPES, GraphBuilder, attention
from tests.graph.cases import CASES, Case, base_magnitude, built
from tests.graph.helpers import all_points, opened, run
from tests.graph.numerics import Array, error_bound
from tests.graph.test_branches import mixed
from tests.graph.test_forms import embedding, embedding_point, grouped, grouped_point


@dataclass
class Update:
    """Arrays, or None."""

    delta: Any = None
    g: Any = None
    h: Any = None
    c: Any = None


def base_of(model: ModelProto, folder: Path, *, external: bool = False) -> BaseGraph:
    """`model` stays as it is: writing external data would take its weights out of it."""
    return opened(copy.deepcopy(model), folder, external=external)


def random_update(point: AttachPoint, asked: str, seed: int = 3) -> Update:
    """`asked` are letters of d(elta), g, h, c."""
    random = np.random.default_rng(seed)
    linear = point.linear
    kernel, groups = (linear.conv.kernel, linear.conv.groups) if linear.conv else ((), 1)
    shape = (linear.out_features, linear.in_features // groups, *kernel)
    return Update(
        delta=random.normal(size=shape) if "d" in asked else None,
        g=random.uniform(0.5, 2.0, size=linear.out_features) if "g" in asked else None,
        h=random.uniform(0.5, 2.0, size=linear.in_features) if "h" in asked else None,
        c=random.normal(size=linear.out_features) if "c" in asked else None,
    )


def merged(
    base: BaseGraph,
    points: list[AttachPoint],
    updates: list[Update],
    folder: Path,
    replaced: dict[str, Array] | None = None,
) -> Path:
    """The merged graph, written into `folder`."""
    folder.mkdir()

    @contextlib.contextmanager
    def create(data: DataFile) -> Iterator[BinaryIO]:
        with (folder / data.location).open("wb") as file:
            yield file

    new = {name: lambda values=values: values for name, values in (replaced or {}).items()}
    asked: list[int] = []

    def update(number: int) -> Update:
        asked.append(number)
        return updates[number]

    graph = write_merged(base, points, update, create, replaced=new)
    assert sorted(asked) == list(range(len(points)))
    path = folder / "merged.onnx"
    path.write_bytes(graph)
    check_model_file(path)
    return path


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("asked", ["d", "dg", "dh", "dc", "dghc", "gc", "c", "h"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_merged_graph_computes_the_use_case(
    tmp_path: Path, case: Case, asked: str, external: bool
) -> None:
    check_case(tmp_path, case, asked, "float32", external)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[9], CASES[13]], ids=lambda c: c.name)
def test_a_merged_float16_graph_computes_the_use_case(
    tmp_path: Path, case: Case, external: bool
) -> None:
    check_case(tmp_path, case, "dgc", "float16", external)


def check_case(folder: Path, case: Case, asked: str, dtype: str, external: bool) -> None:
    model = built(case, dtype)
    base = base_of(model, folder, external=external)
    (point,) = points = list(all_points(base))
    update = random_update(point, asked)
    path = merged(base, points, [update], folder / "out")
    x = np.random.default_rng(2).normal(size=case.x).astype(DTYPES[dtype])
    x64 = x.astype(np.float64)
    is_column = case.x == (7, 4)
    h = np.ones(point.linear.in_features) if update.h is None else update.h
    over_x = h.reshape(-1, 1) if is_column else case.form.over_channels(h, x)
    scaled = (x64 * over_x).astype(x.dtype)
    (plain,) = run(model, {"x": scaled})
    g = 1.0 if update.g is None else case.form.over_channels(update.g, plain)
    c = 0.0 if update.c is None else case.form.over_channels(update.c, plain)
    magnitude = np.abs(g) * base_magnitude(case, model, scaled)
    wanted = g * plain.astype(np.float64) + c
    if update.delta is not None:
        wanted = wanted + case.form.apply(update.delta, x64)
        magnitude = magnitude + case.form.apply(np.abs(update.delta), np.abs(x64))
    terms = point.linear.in_features * math.prod(
        point.linear.conv.kernel if point.linear.conv else ()
    )
    # Both runs sum products and a bias; a merged weight and bias are rounded once, h * x is here.
    bound = 2 * error_bound(magnitude + np.abs(c), terms + 4, dtype)
    (y,) = run(path, {"x": x})
    assert np.all(np.abs(y - wanted) <= bound)
    (unchanged,) = run(model, {"x": x})
    assert np.abs(wanted - unchanged).max() > 10 * bound.max()


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_only_merged_weights_differ_in_the_data_file(tmp_path: Path, external: bool) -> None:
    model = attention(layers=2, style="packed").model()
    base = base_of(model, tmp_path, external=external)
    points = list(all_points(base))
    updates = [Update() for _ in points]
    updates[2] = random_update(points[2], "d")
    path = merged(base, points, updates, tmp_path / "out")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    linear = points[2].linear
    assert changed == {linear.weight}
    wanted = before[linear.weight].astype(np.float64) + updates[2].delta.T
    assert np.array_equal(after[linear.weight], wanted.astype(np.float32))
    if external:
        assert (tmp_path / "out/base.data").stat().st_size == (
            tmp_path / "base.data"
        ).stat().st_size


def test_without_any_update_the_base_is_copied(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path, external=True)
    points = list(all_points(base))
    zeros = [Update(np.zeros_like(random_update(point, "d").delta)) for point in points]
    merged(base, points, zeros, tmp_path / "out")
    assert (tmp_path / "out/merged.onnx").read_bytes() == (tmp_path / "base.onnx").read_bytes()
    assert (tmp_path / "out/base.data").read_bytes() == (tmp_path / "base.data").read_bytes()


def test_large_weights_are_merged_in_pieces(tmp_path: Path) -> None:
    # 4000 x 300 values of float64 take more than four pieces.
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4000))
    y = graph.matmul("/fc/MatMul", x, in_features=4000, out_features=300, output="y")
    graph.output(y, ("N", 300))
    model = graph.model()
    base = base_of(model, tmp_path, external=True)
    (point,) = points = list(all_points(base))
    update = random_update(point, "dgh")
    path = merged(base, points, [update], tmp_path / "out")
    W = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    wanted = (W * update.h[:, None] * update.g + update.delta.T).astype(np.float32)
    (stored,) = onnx.load(str(path)).graph.initializer
    # Two float64 products may be taken in another order: one more rounding, below half a float32's.
    assert np.allclose(onnx.numpy_helper.to_array(stored), wanted, rtol=2.0**-23, atol=2.0**-40)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_an_embedding_is_merged_into_its_table(tmp_path: Path, external: bool) -> None:
    model = embedding()
    base = base_of(model, tmp_path, external=external)
    update = random_update(embedding_point(), "dgc")
    path = merged(base, [embedding_point()], [update], tmp_path / "out")
    ids = np.array([[0, 8, 3], [3, 3, 5]], np.int64)
    (y,) = run(path, {"ids": ids})
    table = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    rows = (update.g * table + update.delta.T)[ids]
    # One rounding of the table, one of c, one of their sum.
    bound = error_bound(np.abs(rows) + np.abs(update.c), 3, "float32")
    assert np.all(np.abs(y - (rows + update.c)) <= bound)


def test_a_grouped_convolution_scales_the_inputs_of_each_group(tmp_path: Path) -> None:
    model = grouped((3, 2))
    base = base_of(model, tmp_path, external=True)
    point = grouped_point((3, 2))
    update = random_update(point, "dghc")
    path = merged(base, [point], [update], tmp_path / "out")
    W, b = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    wanted = np.empty_like(W)
    for row in range(9):
        for column in range(2):
            h = update.h[(row // 3) * 2 + column]
            wanted[row, column] = update.g[row] * W[row, column] * h + update.delta[row, column]
    bound = error_bound(np.abs(wanted), 1, "float32") + 2.0**-40
    assert np.all(np.abs(stored["conv.weight"] - wanted) <= bound)
    assert np.array_equal(stored["conv.bias"], (update.g * b + update.c).astype(np.float32))


def test_bfloat16_weights_are_rounded_once(tmp_path: Path) -> None:
    model = attention(dtype="bfloat16", layers=1).model()
    base = base_of(model, tmp_path, external=True)
    points = list(all_points(base))
    updates = [random_update(point, "d", seed) for seed, point in enumerate(points)]
    path = merged(base, points, updates, tmp_path / "out")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in onnx.load(str(path)).graph.initializer:
        (number,) = (n for n, p in enumerate(points) if p.linear.weight == tensor.name)
        delta = updates[number].delta
        wanted = (before[tensor.name].astype(np.float64) + delta.T).astype(DTYPES["bfloat16"])
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), wanted)


def shared_bias() -> ModelProto:
    """Two layers that read one bias: one directly, one through an Identity."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    bias = graph.weight("bias", 4)
    p = graph.matmul("/p/MatMul", x, in_features=4, out_features=4)
    p = graph.node("Add", [p, bias], "/p/Add")
    q = graph.matmul("/q/MatMul", p, in_features=4, out_features=4)
    q = graph.node("Add", [graph.node("Identity", [bias], "/same"), q], "/q/Add", output="y")
    graph.output(q, ("N", 4))
    return graph.model()


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_bias_that_others_read_is_not_changed_for_them(tmp_path: Path, external: bool) -> None:
    model = shared_bias()
    base = base_of(model, tmp_path, external=external)
    points = list(all_points(base))
    assert [point.name for point in points] == ["p", "q"]
    update = random_update(points[1], "gc")
    path = merged(base, points, [Update(), update], tmp_path / "out")
    x = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    model.graph.output.append(helper.make_tensor_value_info("/p/Add_output_0", 1, ["N", 4]))
    plain, p = run(model, {"x": x})
    after = onnx.load(str(path))
    after.graph.output.append(helper.make_tensor_value_info("/p/Add_output_0", 1, ["N", 4]))
    got, same = run(after, {"x": x})
    assert same.tobytes() == p.tobytes()
    wanted = update.g * plain.astype(np.float64) + update.c
    W = np.abs(onnx.numpy_helper.to_array(model.graph.initializer[2]).astype(np.float64))
    # Four products and a bias here and there, each of factors that were rounded once.
    magnitude = update.g * (np.abs(p) @ W + 4) + np.abs(update.c)
    assert np.all(np.abs(got - wanted) <= 2 * error_bound(magnitude, 4 + 4, "float32"))


def test_of_two_biases_both_are_multiplied_and_one_takes_c(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, 3, 4, 4))
    inputs = [x, graph.weight("w", 2, 3, 1, 1), graph.weight("inner", 2)]
    y = graph.node("Conv", inputs, "/conv/Conv")
    y = graph.node("Add", [graph.weight("outer", 2, 1, 1), y], "/conv/Add", output="y")
    graph.output(y, (2, 2, 4, 4))
    model = graph.model()
    base = base_of(model, tmp_path)
    (point,) = points = list(all_points(base))
    update = random_update(point, "gc")
    path = merged(base, points, [update], tmp_path / "out")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    old = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer
    }
    assert np.array_equal(values["inner"], (update.g * old["inner"]).astype(np.float32))
    outer = update.g * old["outer"].reshape(-1) + update.c
    assert np.array_equal(values["outer"], outer.astype(np.float32).reshape(2, 1, 1))


def test_a_scalar_c_of_a_gemm_becomes_a_bias(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    inputs = [x, graph.weight("w", 4, 3), graph.weight("bias", 1)]
    y = graph.node("Gemm", inputs, "/fc/Gemm", output="y", beta=0.5)
    graph.output(y, ("N", 3))
    model = graph.model()
    base = base_of(model, tmp_path)
    points = list(all_points(base))
    update = random_update(points[0], "gc")
    path = merged(base, points, [update], tmp_path / "out")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    bias = onnx.numpy_helper.to_array(model.graph.initializer[1]).astype(np.float64)
    assert np.array_equal(values["bias"], (update.g * bias + 2 * update.c).astype(np.float32))


def test_replaced_parameters_are_written_and_merged_weights_start_from_them(
    tmp_path: Path,
) -> None:
    for external in (False, True):
        folder = tmp_path / str(external)
        folder.mkdir()
        model = mixed().model()
        base = base_of(model, folder, external=external)
        points = list(all_points(base))
        updates = [Update() for _ in points]
        updates[3] = random_update(points[3], "dgc")
        random = np.random.default_rng(1)
        replaced = {
            name: random.normal(size=shape).astype(np.float32)
            for name, shape in (
                ("conv.bias", (4,)),
                ("second.weight", (5, 6)),
                ("second.bias", (5,)),
            )
        }
        path = merged(base, points, updates, folder / "out", replaced)
        values = {
            t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer
        }
        assert np.array_equal(values["conv.bias"], replaced["conv.bias"])
        g, c, delta = updates[3].g, updates[3].c, updates[3].delta
        weight = g[:, None] * replaced["second.weight"].astype(np.float64) + delta
        assert np.array_equal(values["second.weight"], weight.astype(np.float32))
        bias = g * replaced["second.bias"].astype(np.float64) + c
        assert np.array_equal(values["second.bias"], bias.astype(np.float32))
