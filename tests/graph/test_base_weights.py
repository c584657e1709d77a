"""Weights in tiles and biases, against the values that the graphs were built from."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.values import base_weights
from lora_quant.graph.values.base_weights import GraphWeights
from tests.builders import GraphBuilder, attention
from tests.graph.helpers import branch, opened, resolve
from tests.graph.requests import asked

# Adds the weight and the node of the module `fc`, which reads `x`; returns W [out, in, *kernel].
Build = Callable[[GraphBuilder], Any]


def put(g: GraphBuilder, op: str, *inputs: str, **attributes: Any) -> str:
    return g.node(op, inputs, f"/fc/{op}", "y", **attributes)


def matmul(g: GraphBuilder) -> Any:
    put(g, "MatMul", "x", g.weight("w", 3, 5))
    return g.weights["w"].T


def gemm(trans_b: int, alpha: float) -> Build:
    def build(g: GraphBuilder) -> Any:
        w = g.weight("w", *((5, 3) if trans_b else (3, 5)))
        put(g, "Gemm", "x", w, transB=trans_b, alpha=alpha)
        return g.weights["w"] if trans_b else g.weights["w"].T

    return build


def transposed(g: GraphBuilder) -> Any:
    put(g, "MatMul", "x", g.node("Transpose", [g.weight("w", 5, 3)], "/t", perm=[1, 0]))
    return g.weights["w"]


def rounded(g: GraphBuilder) -> Any:
    """Stored in float64, used in float32 after a rounding to 16 bits."""
    w = g.constant("w", np.random.default_rng(3).normal(size=(3, 5)))
    for number, element in enumerate((TensorProto.FLOAT16, TensorProto.FLOAT)):
        w = g.node("Cast", [w], f"/cast{number}", to=element)
    put(g, "MatMul", "x", w)
    return g.weights["w"].astype(np.float16).astype(np.float32).T


def constant_node(g: GraphBuilder) -> Any:
    value = np.arange(15, dtype=np.float32).reshape(3, 5)
    w = g.node("Constant", [], "/w", value=numpy_helper.from_array(value))
    put(g, "MatMul", "x", w)
    return value.T


def conv(groups: int) -> Build:
    def build(g: GraphBuilder) -> Any:
        put(g, "Conv", "x", g.weight("w", 6, 4 // groups, 2, 3), group=groups)
        return g.weights["w"]

    return build


def embedding(g: GraphBuilder) -> Any:
    put(g, "Gather", g.weight("w", 7, 5), "ids")
    return g.weights["w"].T


CASES: dict[str, Build] = {
    "matmul": matmul,
    "gemm": gemm(0, 1.0),
    "gemm_transposed": gemm(1, 1.0),
    "gemm_gain": gemm(1, 0.3),
    "transposed": transposed,
    "rounded": rounded,
    "constant_node": constant_node,
    "conv": conv(1),
    "conv_grouped": conv(2),
    "embedding": embedding,
}


def built(name: str, folder: Path, dtype: str, external: bool) -> tuple[BaseGraph, Resolution, Any]:
    graph = GraphBuilder(dtype)
    graph.input("x", (1, 4, 5, 5) if "conv" in name else ("N", 3))
    graph.input("ids", ("N",), "int64")
    W = CASES[name](graph)
    graph.output("y", ("N", 6, 4, 3) if "conv" in name else ("N", 5))
    base = opened(graph.model(), folder, external=external)
    if name == "embedding":
        return base, resolve(base, [asked("fc", 7, 5, is_embedding=True)]), W
    groups = 2 if "grouped" in name else 1
    wanted = asked("fc", W.shape[1] * groups, W.shape[0], W.shape[2:], groups=groups)
    return base, resolve(base, [wanted]), W


def collected(base: BaseGraph, resolution: Resolution, module: str) -> Any:
    """The weight of a module; every element is given by exactly one tile."""
    point, part = resolution.place(module)
    sizes = resolution.sizes[module]
    shape = (sizes.out_features, sizes.in_features // sizes.groups, *sizes.kernel)
    values, count = np.zeros(shape), np.zeros(shape)
    for tile in GraphWeights(base).tiles(point, part):
        values[tile.rows, tile.columns] = tile.values
        count[tile.rows, tile.columns] += 1
    assert np.all(count == 1)
    return values


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("tile_bytes", [1, 16, 60, 2 << 20])
@pytest.mark.parametrize("name", CASES)
def test_tiles_are_the_weight_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tile_bytes: int, external: bool
) -> None:
    monkeypatch.setattr(base_weights, "TILE_BYTES", tile_bytes)
    base, resolution, W = built(name, tmp_path, "float32", external)
    assert np.array_equal(collected(base, resolution, "fc"), W.astype(np.float64))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["matmul", "gemm_gain", "conv", "embedding"])
def test_types_of_16_bits_stay_what_they_are(tmp_path: Path, name: str, dtype: str) -> None:
    base, resolution, W = built(name, tmp_path, dtype, external=True)
    kinds = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    (tile,) = GraphWeights(base).tiles(*resolution.place("fc"))
    assert tile.values.dtype == kinds[dtype]
    assert np.array_equal(collected(base, resolution, "fc"), W.astype(np.float64))


@pytest.mark.parametrize("tile_bytes", [1, 40, 2 << 20])
def test_parts_of_a_fused_projection_have_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int
) -> None:
    monkeypatch.setattr(base_weights, "TILE_BYTES", tile_bytes)
    builder = attention(layers=1, style="packed")
    base = opened(builder.model(), tmp_path)
    path = "model.layers.0.self_attn"
    requests = [asked(f"{path}.{leaf}", 8, size) for leaf, size in (("q_proj", 8), ("v_proj", 4))]
    resolution = resolve(base, requests)
    (packed,) = (w for w in builder.weights.values() if w.shape == (8, 16))
    assert np.array_equal(collected(base, resolution, f"{path}.q_proj"), packed[:, :8].T)
    assert np.array_equal(collected(base, resolution, f"{path}.v_proj"), packed[:, 12:].T)


def test_a_weight_that_branches_were_added_to_stays_readable(tmp_path: Path) -> None:
    base, resolution, W = built("gemm_gain", tmp_path, "float32", external=True)
    branch(base, resolution.points)
    assert np.array_equal(collected(base, resolution, "fc"), W.astype(np.float64))


def with_bias(op: str, added: bool, folder: Path, **attributes: Any) -> tuple[BaseGraph, Any]:
    graph = GraphBuilder()
    graph.input("x", (1, 3, 4, 4) if op == "Conv" else ("N", 3))
    weight = graph.weight("w", *((5, 3, 1, 1) if op == "Conv" else (3, 5)))
    inputs = ["x", weight, *([] if op == "MatMul" else [graph.weight("b", 5)])]
    y = graph.node(op, inputs, "/fc/Node", **attributes)
    if added:
        shape = (5, 1, 1) if op == "Conv" else (5,)
        y = graph.node("Add", [graph.weight("b2", *shape), y], "/fc/Add")
    graph.output(y, (1, 5, 4, 4) if op == "Conv" else ("N", 5))
    total = np.zeros(5)
    if op != "MatMul":
        total += np.float64(np.float32(attributes.get("beta", 1.0))) * graph.weights["b"]
    if added:
        total += graph.weights["b2"].reshape(5)
    # alpha multiplies what the module computes, its bias included: the module's is smaller.
    total /= np.float64(np.float32(attributes.get("alpha", 1.0)))
    return opened(graph.model(), folder, external=True), total


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("MatMul", {}), ("Gemm", {}), ("Gemm", {"beta": 0.3}), ("Gemm", {"alpha": 0.7}), ("Conv", {})],
)
def test_a_bias_is_all_that_is_added(
    tmp_path: Path, op: str, attributes: dict[str, float], added: bool
) -> None:
    base, expected = with_bias(op, added, tmp_path, **attributes)
    kernel = (1, 1) if op == "Conv" else ()
    resolution = resolve(base, [asked("fc", 3, 5, kernel)])
    got = GraphWeights(base).bias(*resolution.place("fc"))
    assert got.dtype == np.float64
    # The same sums and products of the same float64 numbers, in the same order.
    assert np.array_equal(got, expected)


def test_the_bias_of_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.matmul("/mlp/gate_up_proj/MatMul", x, in_features=4, out_features=6)
    y = graph.node("Add", [y, graph.weight("b", 6)], "/mlp/gate_up_proj/Add")
    graph.output(y, ("N", 6))
    base = opened(graph.model(), tmp_path)
    resolution = resolve(base, [asked("mlp.up_proj", None, None)])
    got = GraphWeights(base).bias(*resolution.place("mlp.up_proj"))
    assert np.array_equal(got, graph.weights["b"][3:])


@pytest.mark.parametrize(
    ("shape", "expected"), [((), (5,)), ((1,), (5,)), ((1, 5), (5,)), ((5,), (5,)), ((5, 1), None)]
)
def test_shapes_of_a_gemm_bias(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (5, 3))
    y = graph.node("Gemm", [x, graph.weight("w", 3, 5), graph.weight("c", *shape)], "/fc/Gemm")
    graph.output(y, (5, 5))
    base = opened(graph.model(), tmp_path)
    weights, resolution = GraphWeights(base), resolve(base, [asked("fc", 3, 5)])
    if expected is None:
        with pytest.raises(
            GraphError, match=r"shape \[5, 1\], expected one value for each of the 5"
        ):
            weights.bias(*resolution.place("fc"))
        return
    got = weights.bias(*resolution.place("fc"))
    assert np.array_equal(got, np.broadcast_to(graph.weights["c"], (1, 5))[0])


def test_a_bias_that_is_computed_cannot_be_told(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (5, 3))
    c = graph.node("Relu", [graph.weight("c", 5)], "/Relu")
    graph.output(graph.node("Gemm", [x, graph.weight("w", 3, 5), c], "/fc/Gemm"), (5, 5))
    base = opened(graph.model(), tmp_path)
    resolution = resolve(base, [asked("fc", 3, 5)])
    with pytest.raises(GraphError, match="'fc' cannot be read: its bias is computed by Relu"):
        GraphWeights(base).bias(*resolution.place("fc"))


def test_a_cast_to_a_type_that_numpy_does_not_have(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 3))
    w = graph.weight("w", 3, 5)
    for number, element in enumerate((TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT)):
        w = graph.node("Cast", [w], f"/cast{number}", to=element)
    graph.output(graph.node("MatMul", [x, w], "/fc/MatMul"), ("N", 5))
    base = opened(graph.model(opset=19), tmp_path)
    resolution = resolve(base, [asked("fc", 3, 5)])
    with pytest.raises(GraphError, match="its weight is cast to a type that cannot be read"):
        list(GraphWeights(base).tiles(*resolution.place("fc")))


def test_a_large_weight_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    size = 4096 * 4096 * 4
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4096, 4096])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.data", "offset": "0", "length": str(size)}.items():
        weight.external_data.add(key=key, value=value)
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(size)
    tell = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="/fc/MatMul")],
        "large",
        [tell("x", TensorProto.FLOAT, ["N", 4096])],
        [tell("y", TensorProto.FLOAT, ["N", 4096])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "base.onnx").write_bytes(model.SerializeToString())
    base = open_base(tmp_path / "base.onnx")
    resolution = resolve(base, [asked("fc", 4096, 4096)])
    tracemalloc.start()
    try:
        tiles = GraphWeights(base).tiles(*resolution.place("fc"))
        assert sum(tile.values.size for tile in tiles) == 4096 * 4096
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A few tiles, far from the 64 MiB of the weight; one tile at least, so that it is measured.
    assert base_weights.TILE_BYTES <= peak < 24 << 20
