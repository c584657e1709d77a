"""What the weights and biases of quantized bases are worth: to this project's two readers of
graphs, to the definition, and to ONNX Runtime, which multiplies them by the identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import VerificationError
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import AttachPoint, ModulePart
from lora_quant.graph.values import base_weights
from lora_quant.graph.values.base_weights import GraphWeights
from lora_quant.runtime.reference.base_view import BaseView, LinearView
from tests.builders import GraphBuilder, save
from tests.graph.helpers import all_points, opened, run
from tests.graph.quantized_bases import BASES, MICROSOFT, Base, Quantizer, built, model_of
from tests.run_adapter import IS_OLD

Array = NDArray[Any]


ZEROS = ("", "packed", "float")
SIZES: dict[str, Any] = {"K": 32, "N": 4, "bits": 4, "block_size": 16}


def read(graph: BaseGraph, point: AttachPoint, part: ModulePart | None = None) -> Array:
    """The weight of one part, put together from its tiles, each value written once."""
    part = point.parts[0] if part is None else part
    linear = point.linear
    kernel = linear.conv.kernel if linear.conv else ()
    whole = np.full((part.size, linear.in_features, *kernel), np.nan)
    for tile in GraphWeights(graph).tiles(point, part):
        assert np.isnan(whole[tile.rows, tile.columns]).all()
        whole[tile.rows, tile.columns] = tile.values
    assert not np.isnan(whole).any()
    return whole


def viewed(model: ModelProto, node: str, folder: Path) -> LinearView:
    """The node as the reference of `verify` reads it."""
    return BaseView(model, folder / "base.onnx").linear(node)


def exact(base: Base, weights: dict[str, Array], is_in_out: bool) -> Array:
    weight = weights.get("fc.weight", weights.get("fc"))
    assert weight is not None
    return weight.T if is_in_out else weight


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_both_readers_give_the_definition(base: Base, external: bool, tmp_path: Path) -> None:
    model, weights = built(base)
    graph = opened(model, tmp_path, external=external)
    point = next(point for point in all_points(graph) if point.name == "fc")
    wanted = exact(base, weights, point.linear.weight_is_in_out)
    np.testing.assert_array_equal(read(graph, point), wanted)
    loaded = onnx.load(str(graph.path), load_external_data=False)
    view = viewed(loaded, point.linear.node, tmp_path)
    assert (view.is_quantized, view.is_packed) == (True, base.step == 0 and view.op != "MatMul")
    assert view.dtype == np.dtype(point.linear.dtype)
    np.testing.assert_array_equal(view.weight(), wanted)


@pytest.mark.parametrize("name", ["bias", "bias_between_pairs", "gemm", "conv", "four_bits_bias"])
def test_both_readers_find_the_bias(name: str, tmp_path: Path) -> None:
    base = next(base for base in BASES if base.name == name)
    model, weights = built(base)
    graph = opened(model, tmp_path)
    point = next(point for point in all_points(graph) if point.name == "fc")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    wanted = weights["fc.bias"] if "fc.bias" in weights else stored["fc.bias"]
    np.testing.assert_array_equal(GraphWeights(graph).bias(point, point.parts[0]), wanted)
    np.testing.assert_array_equal(viewed(model, point.linear.node, tmp_path).bias(), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"codes": np.int8},
        {"codes": np.uint8, "with_zero": True},
        {"codes": np.int8, "axis": 1},
        {"codes": np.uint16, "axis": 0, "with_zero": True},
        {"codes": np.int16, "axis": -1},
        {"codes": ml_dtypes.int4, "axis": 0, "block_size": 3},
        {"codes": ml_dtypes.uint4, "axis": 1, "block_size": 5, "with_zero": True},
        {"codes": np.int8, "axis": -2, "block_size": 8},
    ],
    ids=str,
)
def test_dequantized_weights_are_what_onnx_runtime_multiplies_by(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """x = 1 gives W itself: all other products of a sum are zeros."""
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 13))
    y = q.graph.node("MatMul", ["x", q.weight("fc.weight", 13, 7, **options)], "/fc/MatMul")
    q.graph.output(y, ("N", 7))
    model = model_of(q)
    (got,) = run(model, {"x": np.eye(13, dtype=np.float32)}, optimized=False)
    graph = opened(model, tmp_path)
    (point,) = all_points(graph)
    np.testing.assert_array_equal(read(graph, point), got.T)
    np.testing.assert_array_equal(viewed(model, "/fc/MatMul", tmp_path).weight(), got.T)


@pytest.mark.parametrize(
    ("bits", "block_size", "zeros"),
    [
        *((4, size, z) for size in (16, 32) for z in ZEROS),
        # It has no kernel for 8 bits with zero points of floats, and older ones have none for 2.
        *((8, size, z) for size in (16, 64) for z in ("", "packed")),
        *(() if IS_OLD else ((2, 16, z) for z in ZEROS)),
    ],
)
def test_packed_weights_are_what_onnx_runtime_multiplies_by(
    bits: int, block_size: int, zeros: str, tmp_path: Path
) -> None:
    """With as many inputs as fill the last block in part.

    Two roundings of float32: the engine may compute q * scale - zero * scale.
    """
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 70))
    y = q.packed("fc", "x", 70, 5, bits=bits, block_size=block_size, zeros=zeros)
    q.graph.output(y, ("N", 5))
    model = model_of(q)
    graph = opened(model, tmp_path)
    (point,) = all_points(graph)
    found = read(graph, point)
    np.testing.assert_array_equal(viewed(model, "/fc/MatMul_Q4", tmp_path).weight(), found)
    (got,) = run(model, {"x": np.eye(70, dtype=np.float32)}, optimized=False)
    largest = (1 << bits) * q.graph.weights["fc.weight_scales"].max()
    np.testing.assert_allclose(found, got.T, rtol=0, atol=2 * 2.0**-23 * largest)


def test_parts_of_a_packed_projection(tmp_path: Path) -> None:
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 32))
    q.graph.output(q.packed("fc", "x", 32, 10, zeros="packed"), ("N", 10))
    graph = opened(model_of(q), tmp_path)
    (point,) = all_points(graph)
    for offset, size in ((0, 4), (4, 3), (7, 3)):
        part = ModulePart("part", offset, size)
        np.testing.assert_array_equal(
            read(graph, point, part), q.weights["fc"][offset : offset + size]
        )


@settings(max_examples=40)
@given(
    first=st.integers(1, 9),
    second=st.integers(1, 9),
    axis=st.integers(0, 1),
    block_size=st.integers(0, 5),
    tile_bytes=st.integers(1, 200),
    codes=st.sampled_from([np.int8, ml_dtypes.int4, ml_dtypes.uint4]),
)
def test_tiles_of_any_size_add_up(
    tmp_path_factory: pytest.TempPathFactory,
    first: int,
    second: int,
    axis: int,
    block_size: int,
    tile_bytes: int,
    codes: Any,
) -> None:
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", first))
    stored = q.weight(
        "w", first, second, codes=codes, axis=axis, block_size=block_size, with_zero=True
    )
    q.graph.output(q.graph.node("MatMul", ["x", stored], "/fc/MatMul"), ("N", second))
    graph = opened(model_of(q), tmp_path_factory.mktemp("tiles"), external=True)
    (point,) = all_points(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_weights, "TILE_BYTES", tile_bytes)
        np.testing.assert_array_equal(read(graph, point), q.weights["w"].T)


@pytest.mark.parametrize("tile_bytes", [1, 400, 1000])
def test_tiles_of_packed_weights(
    tile_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 50))
    q.graph.output(q.packed("fc", "x", 50, 7, zeros="packed"), ("N", 7))
    graph = opened(model_of(q), tmp_path, external=True)
    (point,) = all_points(graph)
    monkeypatch.setattr(base_weights, "TILE_BYTES", tile_bytes)
    np.testing.assert_array_equal(read(graph, point), q.weights["fc"])


def test_codes_of_a_type_that_the_quantizer_names(tmp_path: Path) -> None:
    """Opset 21: output_dtype, without a zero point."""
    graph = GraphBuilder()
    graph.input("x", ("N", 16))
    grid = [graph.constant("s", np.array(2.0**-8, np.float32))]
    q = graph.node("QuantizeLinear", [graph.weight("w", 16, 6), *grid], "/q", output_dtype=3)
    w = graph.node("DequantizeLinear", [q, *grid], "/dq")
    graph.output(graph.node("MatMul", ["x", w], "/fc/MatMul"), ("N", 6))
    model = graph.model(opset=21, ir_version=10)
    (got,) = run(model, {"x": np.eye(16, dtype=np.float32)}, optimized=False)
    assert (got.min(), got.max()) == (-0.5, 127 * 2.0**-8), "both ends of int8"
    base = opened(model, tmp_path)
    (point,) = all_points(base)
    np.testing.assert_array_equal(read(base, point), got.T)
    np.testing.assert_array_equal(viewed(model, "/fc/MatMul", tmp_path).weight(), got.T)


def test_casts_behind_the_dequantization(tmp_path: Path) -> None:
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 5), "float16")
    cast = q.graph.node("Cast", [q.weight("w", 5, 3, axis=1)], "/cast", to=TensorProto.FLOAT16)
    q.graph.output(q.graph.node("MatMul", ["x", cast], "/fc/MatMul"), ("N", 3), "float16")
    model = model_of(q)
    graph = opened(model, tmp_path)
    (point,) = all_points(graph)
    assert point.linear.dtype == "float16"
    wanted = q.weights["w"].T.astype(np.float16)
    np.testing.assert_array_equal(read(graph, point), wanted)
    np.testing.assert_array_equal(viewed(model, "/fc/MatMul", tmp_path).weight(), wanted)


def test_a_type_of_its_own_for_the_result(tmp_path: Path) -> None:
    """Opset 23: output_dtype."""
    q = Quantizer(GraphBuilder())
    q.graph.input("x", ("N", 5), "float16")
    w = q.weight("w", 5, 3)
    q.graph.nodes[-1].attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT16))
    q.graph.output(q.graph.node("MatMul", ["x", w], "/fc/MatMul"), ("N", 3), "float16")
    model = model_of(q, opset=23)
    graph = opened(model, tmp_path)
    (point,) = all_points(graph)
    assert point.linear.dtype == "float16"
    wanted = q.weights["w"].T.astype(np.float16)
    np.testing.assert_array_equal(read(graph, point), wanted)
    np.testing.assert_array_equal(viewed(model, "/fc/MatMul", tmp_path).weight(), wanted)


def test_the_reference_refuses_another_order_of_inputs(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.input("x", ("N", 32))
    inputs = ["x", graph.constant("B", np.zeros((4, 2, 8), np.uint8)), graph.weight("s", 4, 2)]
    inputs += ["", graph.constant("order", np.zeros(32, np.int32))]
    graph.output(
        graph.node("MatMulNBits", inputs, "/fc/MatMul", domain=MICROSOFT, **SIZES), ("N", 4)
    )
    model = graph.model(other_domains=[MICROSOFT])
    save(model, tmp_path / "base.onnx")
    with pytest.raises(VerificationError, match="cannot be read: expected constants of 2, 4 or 8"):
        viewed(model, "/fc/MatMul", tmp_path).weight()
