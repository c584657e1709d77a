"""Packing to 4 bits, and MatMulNBits in ONNX Runtime against the dequantized weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.quantized.nbits import (
    NBitsLayout,
    NBitsValues,
    pack_values,
    use_nbits,
)
from lora_quant.graph.quantized.qdq_records import OverridableInput
from lora_quant.graph.records import TensorRecord
from tests.builders import GraphBuilder

Array = NDArray[Any]
LAYOUTS = st.builds(
    NBitsLayout, st.integers(1, 70), st.integers(1, 9), st.sampled_from([16, 32, 64])
)


def unpacked(packed: Array, layout: NBitsLayout) -> Array:
    """The codes 0 to 15 `[k, n]`, one by one, from what the operator's documentation says."""
    result = np.zeros((layout.k, layout.n), np.int64)
    for n in range(layout.n):
        for k in range(layout.k):
            block, at = divmod(k, layout.block_size)
            byte = int(packed[n, block, at // 2])
            result[k, n] = byte >> 4 if at % 2 else byte & 0x0F
    return result


def dequantized(values: NBitsValues, layout: NBitsLayout) -> Array:
    """W `[k, n]` in float64."""
    scales = np.repeat(values.scales.T.astype(np.float64), layout.block_size, axis=0)
    return (unpacked(values.packed, layout) - 8) * scales[: layout.k]


@given(LAYOUTS, st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float16"]))
def test_values_within_the_codes_are_off_by_half_a_step(
    layout: NBitsLayout, seed: int, dtype: str
) -> None:
    """In float64, which rounds a step off by 2**-50 of it at most; codes 0 and 15 may clip."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(layout.k, layout.n)).astype(dtype)
    got = pack_values(values, layout)
    assert got.packed.shape == layout.packed_shape
    assert got.scales.shape == layout.scales_shape
    assert got.scales.dtype == values.dtype
    codes = unpacked(got.packed, layout)
    steps = np.abs(np.repeat(got.scales.T, layout.block_size, axis=0)[: layout.k].astype(float))
    inner = (codes > 0) & (codes < 15)
    off = np.abs(values - dequantized(got, layout))
    assert (off[inner] <= (0.5 + 2.0**-50) * steps[inner]).all()


@given(LAYOUTS, st.integers(0, 2**32 - 1))
def test_no_block_is_worse_than_with_the_plain_scale(layout: NBitsLayout, seed: int) -> None:
    """The plain one gives the value of largest magnitude code 0. Float64 sums of 64: 2**-45."""
    values = np.random.default_rng(seed).normal(size=(layout.k, layout.n)).astype(np.float32)
    back = dequantized(pack_values(values, layout), layout)
    for n in range(layout.n):
        for start in range(0, layout.k, layout.block_size):
            block = values[start : start + layout.block_size, n].astype(np.float64)
            scale = float(np.float32(block[np.abs(block).argmax()] / -8))
            plain = np.clip(np.rint(block / scale), -8, 7) * scale
            off = back[start : start + layout.block_size, n] - block
            assert (off**2).sum() <= ((plain - block) ** 2).sum() * (1 + 2.0**-45)


def test_zeros_and_padding_are_the_zero_byte() -> None:
    layout = NBitsLayout(5, 2, 16)
    got = pack_values(np.zeros((5, 2), np.float32), layout)
    assert (got.packed == 0x88).all()
    assert (got.scales == 1).all()
    full = pack_values(np.ones((5, 2), np.float32), layout)
    assert (full.packed[:, :, 3:] == 0x88).all()


def test_values_too_small_for_a_scale_become_zero() -> None:
    least = np.full((4, 1), np.finfo(np.float16).smallest_subnormal)
    got = pack_values(least, NBitsLayout(4, 1, 16))
    assert (got.packed == 0x88).all()


@pytest.mark.parametrize("size", [0, 8, 24])
def test_a_block_size_that_the_operator_does_not_have_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a power of 2 from 16 on"):
        NBitsLayout(64, 4, size)


def model_of(k: int, n: int, dtype: str = "float32") -> ModelProto:
    graph = GraphBuilder(dtype)
    x = graph.input("x", ("batch", "rows", k))
    graph.output(
        graph.matmul("linear", x, in_features=k, out_features=n, weight="w", output="y"),
        ("batch", "rows", n),
    )
    return graph.model()


def session(model: ModelProto, level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("k", "n", "block_size"), [(64, 48, 32), (20, 8, 16), (8, 24, 16), (2, 3, 16), (100, 2, 128)]
)
def test_the_operator_multiplies_by_the_dequantized_weight(
    tmp_path: Path, k: int, n: int, block_size: int, dtype: str, rows: int
) -> None:
    """Sums of k products, each product and sum rounded once, in any order: (k + 1) u sum |x w|.

    u is half of eps. The dequantized weight is rounded once more (u); the result to the dtype, on
    top of what float32 sums give.
    """
    layout = NBitsLayout(k, n, block_size)
    model = model_of(k, n, dtype)
    made = use_nbits(model, {"w": layout})
    assert made == (
        OverridableInput(TensorRecord("w_quantized", layout.packed_shape, "uint8"), "w", "values"),
        OverridableInput(TensorRecord("w_scale", layout.scales_shape, dtype), "w", "scale"),
    )
    engine = session(model)
    random = np.random.default_rng(k)
    x = random.normal(size=(2, rows, k)).astype(dtype)
    zero = engine.run(None, {"x": x})[0]
    assert np.array_equal(zero, np.zeros((2, rows, n), dtype))
    for seed in (0, 1):
        values = random.normal(size=(k, n)).astype(dtype)
        packed = pack_values(values, layout)
        path = tmp_path / f"{seed}.onnx_adapter"
        written = ort.AdapterFormat()
        written.set_adapter_version(1)
        written.set_model_version(1)
        written.set_parameters(
            {
                "w_quantized": ort.OrtValue.ortvalue_from_numpy(packed.packed),
                "w_scale": ort.OrtValue.ortvalue_from_numpy(packed.scales),
            }
        )
        written.export_adapter(str(path))
        adapter = ort.LoraAdapter()
        adapter.Load(str(path))
        options = ort.RunOptions()
        options.add_active_adapter(adapter)
        got = engine.run(None, {"x": x}, options)[0].astype(np.float64)
        weight = dequantized(packed, layout)
        exact = x.astype(np.float64) @ weight
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(weight)
        bound = (k + 2) * 2.0**-24 * magnitude
        if dtype == "float16":
            # Weights and results in half precision: one rounding of 2**-11 each.
            bound += 2.0**-11 * (magnitude + np.abs(exact)) + 2.0**-24
        assert (np.abs(got - exact) <= bound).all()


def test_the_other_nodes_and_the_name_of_the_node_stay() -> None:
    model = model_of(8, 4)
    use_nbits(model, {"w": NBitsLayout(8, 4, 16)})
    (node,) = model.graph.node
    assert (node.name, node.domain, node.op_type) == ("linear", "com.microsoft", "MatMulNBits")
    assert list(node.input) == ["x", "w_quantized", "w_scale"]
    assert [value.name for value in model.graph.input] == ["x", "w_quantized", "w_scale"]
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}


def test_no_weights_change_nothing() -> None:
    model = model_of(8, 4)
    before = model.SerializeToString()
    assert use_nbits(model, {}) == ()
    assert model.SerializeToString() == before


def _first_input(model: ModelProto) -> None:
    model.graph.node[0].input[:] = ["w", "x"]


def _gemm(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Gemm"


def _twice(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["w"], ["z"]))


def _brain_float(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.BFLOAT16


def _taken(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["x"], ["w_scale"]))


def _missing(model: ModelProto) -> None:
    del model.graph.initializer[:]


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (_first_input, "only the second input of a single MatMul"),
        (_gemm, "only the second input of a single MatMul"),
        (_twice, "only the second input of a single MatMul"),
        (_brain_float, "type bfloat16 cannot be packed to 4 bits"),
        (_taken, "needs the name 'w_scale'"),
        (_missing, "no initializer of this name"),
    ],
)
def test_a_weight_that_cannot_be_packed_is_refused_by_name(
    prepare: Callable[[ModelProto], None], text: str
) -> None:
    model = model_of(8, 4)
    prepare(model)
    before = model.SerializeToString()
    with pytest.raises(GraphError, match=text) as caught:
        use_nbits(model, {"w": NBitsLayout(8, 4, 16)}, where=Where(file=Path("base.onnx")))
    assert caught.value.where == Where(file=Path("base.onnx"), tensor="w")
    assert model.SerializeToString() == before
