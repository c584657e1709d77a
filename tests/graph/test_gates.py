"""Gates: alpha times a graph input per token, and routers, in ONNX Runtime against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError
from lora_quant.graph.branching.branches import AlphaLayout
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.records import BranchedGraph, Gate
from tests.builders import DTYPES, GraphBuilder, attention
from tests.graph.cases import RANK, SLOTS, factors, stored, strengths
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
from tests.graph.numerics import Array, error_bound
from tests.graph.test_branches import check_golden, serialize_of

IN, OUT, EXPERTS = 7, 6, 3
Shape = tuple[Any, ...]


def one_layer(dtype: str = "float32", shape: Shape = ("B", "T", IN), opset: int = 17) -> ModelProto:
    graph = GraphBuilder(dtype)
    x = graph.input("x", shape)
    y = graph.matmul("/fc/MatMul", x, in_features=IN, out_features=OUT, output="y")
    graph.output(y, (*shape[:-1], OUT))
    return graph.model(opset=opset)


def gated_graph(
    folder: Path,
    model: ModelProto,
    gates: set[Gate],
    *,
    layout: AlphaLayout = "slot",
    vectors: str = "",
) -> tuple[ModelProto, BranchedGraph]:
    base = opened(model, folder)
    points = [with_extras(point, vectors, gates) for point in all_points(base)]
    branched = branch(base, points, max_rank=RANK, alpha_layout=layout, experts=EXPERTS)
    onnx.checker.check_model(base.model.proto, full_check=True)
    assert serialize_of(undone(base.model.proto, branched)) == serialize_of(model)
    return base.model.proto, branched


def gate_values(branched: BranchedGraph, tokens: int) -> tuple[dict[str, Array], Array]:
    """What to feed, and the gate per rank `[batch, tokens, R]`; it is closed for some tokens."""
    assert branched.scale is not None
    assert branched.scale.gate is not None
    by_slot = np.random.default_rng(9).uniform(0.5, 1.5, size=(2, tokens, len(SLOTS)))
    by_slot = by_slot.astype(np.float32)
    by_slot[0, :1, 0] = by_slot[1, :2, 1] = 0
    by_rank = np.zeros((2, tokens, RANK), np.float32)
    for slot, (start, rank, _) in enumerate(SLOTS):
        by_rank[..., start : start + rank] = by_slot[..., slot : slot + 1]
    is_rank = branched.scale.expansion is None
    return {branched.scale.gate.name: by_rank if is_rank else by_slot}, by_rank.astype(np.float64)


@pytest.mark.parametrize(
    "gates", [{Gate.INPUT}, {Gate.ROUTER}, set(Gate)], ids=["input", "router", "both"]
)
@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_gated_graphs_read_like_their_goldens(
    tmp_path: Path, layout: AlphaLayout, gates: set[Gate]
) -> None:
    after, _ = gated_graph(tmp_path, one_layer(), gates, layout=layout)
    name = "_".join(sorted(gate.value for gate in gates))
    check_golden(f"gated_{name}_{layout}.txt", printed(after.graph))


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("vectors", ["", "ghc"])
def test_a_gate_multiplies_alpha_per_token(
    tmp_path: Path, vectors: str, dtype: str, layout: AlphaLayout
) -> None:
    model = one_layer(dtype)
    after, branched = gated_graph(tmp_path, model, {Gate.INPUT}, layout=layout, vectors=vectors)
    (made,) = branched.branches
    A, B = factors(made, 1)
    weights, feeds, s = strengths(branched)
    gate_feeds, gate = gate_values(branched, 4)
    x = np.random.default_rng(2).normal(size=(2, 4, IN)).astype(DTYPES[dtype])
    (plain,) = run(model, {"x": x})
    filled = put(after, stored(made, A, B) | weights)
    (y,) = run(filled, {"x": x} | feeds | gate_feeds)
    A64, B64, x64 = (array.astype(np.float64) for array in (A, B, x))
    wanted = plain + ((x64 @ A64.T) * (s * gate)) @ B64.T
    magnitude = ((np.abs(x64) @ np.abs(A64.T)) * (np.abs(s) * gate)) @ np.abs(B64.T)
    # alpha * gate, the sum over slots, a cast, A x, s * a, B m; the base and its sum with l.
    bound = error_bound(magnitude, 1 + len(SLOTS) + 1 + IN + 1 + RANK, dtype)
    bound += error_bound(np.abs(plain.astype(np.float64)) + magnitude, 1, dtype)
    W = np.abs(onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64))
    bound += 2 * error_bound(np.abs(x64) @ W, IN, dtype)
    assert np.all(np.abs(y - wanted) <= bound)
    assert np.abs(wanted - plain).max() > 20 * bound.max()
    # A closed gate is the base.
    closed = {name: np.zeros_like(value) for name, value in gate_feeds.items()}
    (off,) = run(filled, {"x": x} | feeds | closed)
    assert off.tobytes() == plain.tobytes()


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_gated_and_plain_points_share_one_graph(tmp_path: Path, layout: AlphaLayout) -> None:
    base = opened(attention(layers=1, dtype="float16", style="packed").model(), tmp_path)
    prefix = "model.layers.0.self_attn"
    requests = [
        request(f"{prefix}.{leaf}", 8, size) for leaf, size in (("v_proj", 4), ("q_proj", 8))
    ]
    points = [
        *(with_extras(p, gates={Gate.INPUT}) for p in resolve(base, requests).points),
        *resolve(base, [request(f"{prefix}.o_proj", 16, 8)]).points,
    ]
    branched = branch(base, points, max_rank=RANK, alpha_layout=layout)
    after = base.model.proto
    onnx.checker.check_model(after, full_check=True)
    check_golden(f"gated_packed_{layout}.txt", printed(after.graph))
    # The gate of a plain point is not there: what is fed does not reach it.
    _, plain = branched.branches
    after.graph.output.append(helper.make_tensor_value_info(plain.m, TensorProto.FLOAT16, None))
    filled = put(after, {w.name: w_values(w.shape, w.dtype) for w in weights_of(branched)})
    x = np.ones((2, 4, 8), np.float16)
    alpha = branched.scale.alpha if branched.scale is not None else None
    assert alpha is not None
    gate_feeds, _ = gate_values(branched, 4)
    (name,) = gate_feeds
    results = [
        run(filled, {"x": x, alpha.name: np.ones(alpha.shape, np.float32), name: gate})
        for gate in (gate_feeds[name], 2 * gate_feeds[name])
    ]
    assert not np.array_equal(results[0][0], results[1][0])
    assert results[0][1].shape == (2, 4, RANK)


def weights_of(branched: BranchedGraph) -> list[Any]:
    return [weight.record for weight in updatable_weights(branched)]


def w_values(shape: tuple[int, ...], dtype: str) -> Array:
    values: Array = np.random.default_rng(1).uniform(0.1, 0.2, size=shape).astype(DTYPES[dtype])
    return values


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (("B", "T", IN), ["B", "T"]),
        ((1, 16, IN), [1, 16]),
        ((1, "T", IN), [1, "T"]),
    ],
)
def test_the_gate_has_the_sizes_that_the_graph_tells(
    tmp_path: Path, shape: Shape, sizes: list[int | str]
) -> None:
    after, branched = gated_graph(tmp_path, one_layer(shape=shape), {Gate.INPUT})
    (gate,) = [v for v in after.graph.input if v.name == "lora_alpha_gate"]
    dims = gate.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [*sizes, 2]
    assert branched.scale is not None
    assert branched.scale.gate is not None
    told = tuple(size if isinstance(size, int) else -1 for size in sizes)
    assert branched.scale.gate.shape == (*told, 2)


def test_gated_scales_are_told_apart_whatever_the_name_of_alpha(tmp_path: Path) -> None:
    base = opened(one_layer(), tmp_path)
    points = [with_extras(point, "", {Gate.INPUT}) for point in all_points(base)]
    scale = branch(base, points, alpha_name="aggregate").scale
    assert scale is not None
    product, s = scale.gated
    nodes = {node.output[0]: node for node in base.model.proto.graph.node}
    assert list(nodes[product].input) == ["aggregate", "aggregate_gate"]
    assert nodes[s].input[0] == product
    assert set(scale.gated) <= set(scale.scales)


def test_a_graph_that_tells_nothing_leaves_the_gate_open(tmp_path: Path) -> None:
    graph = GraphBuilder()
    z = graph.node("Relu", [graph.input("x", ("B", "T", IN))], "/relu")
    y = graph.matmul("/fc/MatMul", z, in_features=IN, out_features=OUT, output="y")
    graph.output(y, ("B", "T", OUT))
    after, _ = gated_graph(tmp_path, graph.model(), {Gate.INPUT, Gate.ROUTER})
    (gate,) = [v for v in after.graph.input if v.name == "lora_alpha_gate"]
    dims = gate.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [
        "lora_alpha_batch",
        "lora_alpha_tokens",
        2,
    ]


def two_layers(first: Shape, second: Shape) -> ModelProto:
    graph = GraphBuilder()
    for name, shape in (("p", first), ("q", second)):
        graph.input(f"x_{name}", (*shape, IN))
        graph.matmul(f"/{name}/MatMul", f"x_{name}", in_features=IN, out_features=OUT, output=name)
        graph.output(name, (*shape, OUT))
    return graph.model()


def test_names_that_differ_may_be_one_size(tmp_path: Path) -> None:
    after, _ = gated_graph(tmp_path, two_layers(("B", "T"), ("B", "U")), {Gate.INPUT})
    (gate,) = [v for v in after.graph.input if v.name == "lora_alpha_gate"]
    dims = gate.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["B", "lora_alpha_tokens", 2]


def test_a_layer_that_reads_the_last_token_only_is_refused(tmp_path: Path) -> None:
    base = opened(two_layers(("B", "T"), ("B", 1)), tmp_path)
    points = [with_extras(p, gates={Gate.INPUT}) for p in all_points(base)]
    with pytest.raises(GraphError, match="see tokens of different sizes: 'T' and 1; expected one"):
        branch(base, points)


@pytest.mark.parametrize("gate", list(Gate))
def test_an_input_without_tokens_is_refused(tmp_path: Path, gate: Gate) -> None:
    base = opened(one_layer(shape=("N", IN)), tmp_path)
    before = serialize_of(base.model.proto)
    with pytest.raises(GraphError, match=r"has 2 axes; expected \[batch, tokens, features\]"):
        branch(base, [with_extras(p, gates={gate}) for p in all_points(base)], experts=2)
    assert serialize_of(base.model.proto) == before


def test_a_convolution_and_a_transposed_input_are_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 3, 4, 4))
    y = graph.node("Conv", [x, graph.weight("w", 2, 3, 1, 1)], "/conv/Conv", output="y")
    graph.output(y, (1, 2, 4, 4))
    base = opened(graph.model(), tmp_path)
    with pytest.raises(GraphError, match="wants a gate per token at 'conv'; expected a linear"):
        branch(base, [with_extras(p, gates={Gate.INPUT}) for p in all_points(base)])
    graph = GraphBuilder()
    x = graph.input("x", (IN, 4))
    y = graph.node("Gemm", [x, graph.weight("w", IN, 3)], "/fc/Gemm", output="y", transA=1)
    graph.output(y, (4, 3))
    base = opened(graph.model(), tmp_path)
    with pytest.raises(GraphError, match="a router over its tokens at 'a Gemm of a transposed"):
        branch(base, [with_extras(p, gates={Gate.ROUTER}) for p in all_points(base)], experts=2)


@pytest.mark.parametrize("optimized", [False, True], ids=["as_is", "optimized"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "gates", [{Gate.INPUT}, {Gate.ROUTER}, set(Gate)], ids=["input", "router", "both"]
)
def test_a_gated_graph_computes_the_base_until_it_has_weights(
    tmp_path: Path, gates: set[Gate], dtype: str, optimized: bool
) -> None:
    model = one_layer(dtype)
    after, _ = gated_graph(tmp_path, model, gates, vectors="ghc")
    x = np.random.default_rng(2).normal(size=(2, 4, IN)).astype(DTYPES[dtype])
    feeds: dict[str, Array] = {"x": x, "lora_alpha": np.array([1, 2], np.float32)}
    if Gate.INPUT in gates:
        feeds["lora_alpha_gate"] = np.ones((2, 4, 2), np.float32)
    (plain,) = run(model, {"x": x}, optimized=optimized)
    (y,) = run(after, feeds, optimized=optimized)
    assert y.tobytes() == plain.tobytes()
