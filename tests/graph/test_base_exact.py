"""With alpha = 0, or with the zero weights it is built with, a graph computes the base bit for bit.

The only difference there can be is the sign of a zero: -0.0 + 0.0 is 0.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from safetensors.numpy import load_file

from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.base.graph_bytes import graph_bytes
from lora_quant.graph.branching.updatable_weights import Role, updatable_weights
from lora_quant.graph.records import BranchedGraph
from tests.builders import GraphBuilder, attention
from tests.graph.helpers import all_points, branch, opened, put, request, resolve, run, with_extras
from tests.graph.numerics import Array
from tests.graph.test_branches import mixed

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests/fixtures/exports"
OFF = np.zeros(2, np.float32)


def random_factors(model: ModelProto, branched: BranchedGraph) -> dict[str, Array]:
    random = np.random.default_rng(5)
    factors = (Role.A_WEIGHT, Role.B_WEIGHT)
    names = {w.record.name for w in updatable_weights(branched) if w.role in factors}
    return {
        t.name: random.normal(size=list(t.dims)).astype(
            helper.tensor_dtype_to_np_dtype(t.data_type)
        )
        for t in model.graph.initializer
        if t.name in names
    }


def same_bytes(one: list[Array], other: list[Array]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("optimized", [False, True], ids=["as_is", "optimized"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("style", ["path", "packed"])
@pytest.mark.parametrize("vectors", ["", "ghc"])
def test_projections(tmp_path: Path, vectors: str, style: str, dtype: str, optimized: bool) -> None:
    model = attention(style=style, dtype=dtype).model()
    base = opened(model, tmp_path)
    branched = branch(base, [with_extras(point, vectors) for point in all_points(base)])
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8)).astype(dtype)}
    check_exact(model, base, branched, feeds, optimized)


@pytest.mark.parametrize("optimized", [False, True], ids=["as_is", "optimized"])
@pytest.mark.parametrize("vectors", ["", "ghc"])
def test_convolutions_biases_and_gemm(tmp_path: Path, vectors: str, optimized: bool) -> None:
    model = mixed().model()
    base = opened(model, tmp_path)
    branched = branch(base, [with_extras(point, vectors) for point in all_points(base)])
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    check_exact(model, base, branched, feeds, optimized)


def check_exact(
    model: ModelProto,
    base: BaseGraph,
    branched: BranchedGraph,
    feeds: dict[str, Array],
    optimized: bool,
) -> None:
    plain = run(model, feeds, optimized=optimized)
    after = base.model.proto
    on = {"lora_alpha": np.array([1, 2], np.float32)}
    off = {"lora_alpha": OFF}
    assert same_bytes(run(after, feeds | on, optimized=optimized), plain)
    values = random_factors(after, branched)
    filled = put(after, values | {"lora_alpha.expansion": np.ones((2, 4), np.float32)})
    assert same_bytes(run(filled, feeds | off, optimized=optimized), plain)
    assert not same_bytes(run(filled, feeds | on, optimized=optimized), plain)


@pytest.mark.parametrize("optimized", [False, True], ids=["as_is", "optimized"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "genai_fp32", "genai_fp16"])
@pytest.mark.parametrize("vectors", ["", "ghc"])
def test_exports(tmp_path: Path, vectors: str, exporter: str, optimized: bool) -> None:
    path = EXPORTS / exporter / "model.onnx"
    base = open_base(path)
    branched = branch(base, [with_extras(point, vectors) for point in all_points(base)])
    feeds = load_file(path.parent / "inputs.safetensors")
    names = [weight.record.name for weight in updatable_weights(branched)]
    data = graph_bytes(base, names, "zeros.data")
    (tmp_path / "model.onnx").write_bytes(data)
    (tmp_path / "zeros.data").write_bytes(bytes(base.zeros.block_size))
    for file in base.model.data_files:
        (tmp_path / file.location).write_bytes(file.path.read_bytes())
    plain = run(path, feeds, optimized=optimized)
    got = run(tmp_path / "model.onnx", feeds | {"lora_alpha": OFF}, optimized=optimized)
    assert same_bytes(got, plain)
    # The stored branches are zero, so that the strength does not matter either.
    on = {"lora_alpha": np.ones(2, np.float32)}
    got = run(tmp_path / "model.onnx", feeds | on, optimized=optimized)
    assert same_bytes(got, plain)


def test_a_negative_zero_loses_its_sign(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 1))
    y = graph.node("MatMul", [x, graph.constant("w", np.array([[1.0]], np.float32))], "/fc/MatMul")
    graph.output(y, (1, 1))
    model = graph.model()
    base = opened(model, tmp_path)
    branch(base, all_points(base))
    feeds: dict[str, Array] = {"x": np.array([[-0.0]], np.float32)}
    (plain,) = run(model, feeds)
    (got,) = run(base.model.proto, feeds | {"lora_alpha": OFF})
    assert got == plain == 0
    assert not np.signbit(got[0, 0])


def test_two_points_may_read_one_x_and_a_point_may_be_an_output(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    p = graph.matmul("/p/MatMul", x, in_features=4, out_features=3, output="p")
    q = graph.matmul("/q/MatMul", x, in_features=4, out_features=3, output="q")
    s = graph.node("Add", [p, q], "/Add", output="sum")
    for name in (p, s):
        graph.output(name, ("N", 3))
    model = graph.model()
    base = opened(model, tmp_path)
    points = resolve(base, [request("p", 4, 3), request("q", 4, 3)]).points
    # Neither p (a graph output as well) nor q is followed by a bias.
    assert [(p.output, p.bias_node) for p in points] == [("p", None), ("q", None)]
    branched = branch(base, points)
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}
    check_exact(model, base, branched, feeds, optimized=True)


def test_a_subgraph_reads_the_sum_under_the_old_name(tmp_path: Path) -> None:
    model = captured_model()
    base = opened(model, tmp_path)
    (point,) = all_points(base)
    branched = branch(base, [point])
    onnx.checker.check_model(base.model.proto, full_check=True)
    feeds: dict[str, Array] = {
        "x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32),
        "flag": np.array(True),
    }
    check_exact(model, base, branched, feeds, optimized=True)


def captured_model() -> ModelProto:
    """A linear whose product only the branches of an If read."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    flag = graph.input("flag", (), "bool")
    y = graph.matmul("/fc/MatMul", x, in_features=4, out_features=3)
    bodies = {}
    for name, op in (("then", "Neg"), ("else", "Identity")):
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 3])
        node = helper.make_node(op, [y], [output.name])
        bodies[f"{name}_branch"] = helper.make_graph([node], name, [], [output])
    z = graph.node("If", [flag], "/If", **bodies)
    graph.output(z, ("N", 3))
    return graph.model()
