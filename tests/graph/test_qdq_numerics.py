"""Q/DQ in ONNX Runtime against the formulas of ONNX, written out in numpy.

A code minus its zero point is a whole number below 2**17, exact in float32, and a product is
rounded once, in ONNX Runtime as in numpy: dequantized values agree bit for bit. So do quantized
ones, where both divide in float32 and round half to even.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import ActivationQdq, WeightQdq
from tests.builders import GraphBuilder

Array = NDArray[Any]
Levels = ort.GraphOptimizationLevel
LEVELS = [
    Levels.ORT_DISABLE_ALL,
    Levels.ORT_ENABLE_BASIC,
    Levels.ORT_ENABLE_EXTENDED,
    Levels.ORT_ENABLE_ALL,
]
SHAPE = (8, 6)
RANK = "lora_rank_1"


def session(model: ModelProto, level: Any = Levels.ORT_ENABLE_ALL) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def grid_of(dtype: str, kind: str, seed: int = 0) -> Grid:
    """Random scales, and zero points all over the container."""
    random = np.random.default_rng(seed)
    sizes: dict[str, tuple[tuple[int, ...], int | None, int | None]] = {
        "tensor": ((1,), None, None),
        "rows": ((8,), 0, None),
        "columns": ((6,), 1, None),
        "blocks": ((2, 6), 0, 4),
    }
    shape, axis, block = sizes[kind]
    scale = random.uniform(1e-4, 1e-1, shape).astype(np.float32)
    info = np.iinfo(dtype)
    zero = random.integers(info.min, info.max, shape, dtype, endpoint=True)
    return Grid(dtype, scale, zero, axis, block)


def over_elements(values: Array, kind: str) -> Array:
    """A scale or zero point for each element, by hand."""
    if kind == "blocks":
        return np.concatenate([*[values[:1]] * 4, *[values[1:]] * 4])
    return np.asarray(values[:, np.newaxis] if kind == "rows" else values)


def dequantized(codes: Array, grid: Grid, kind: str) -> Array:
    zero: Array = over_elements(grid.zero_point, kind).astype(np.int64)
    difference: Array = codes.astype(np.int64) - zero
    return np.asarray(difference.astype(np.float32) * over_elements(grid.scale, kind))


def quantized(values: Array, scale: Any, zero: int, dtype: str) -> Array:
    steps = np.rint(values.astype(np.float32) / np.float32(scale)) + zero
    return np.asarray(np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max))


def weight_graph(opset: int, dtype: str = "float32") -> ModelProto:
    """y = 1 * w: what the weight is after dequantization, bit for bit."""
    graph = GraphBuilder(dtype)
    x = graph.input("x", (1,))
    graph.weight("w", *SHAPE)
    graph.output(graph.node("Mul", [x, "w"], "mul", "y"), ("A", "B"))
    return graph.model(opset=opset)


def activation_graph(opset: int = 17, dtype: str = "float32") -> ModelProto:
    graph = GraphBuilder(dtype)
    x = graph.input("x", ("n",))
    graph.output(graph.node("Neg", [x], "neg", "y"), ("n",))
    return graph.model(opset=opset)


def ones(dtype: str = "float32") -> dict[str, Array]:
    return {"x": np.ones(1, dtype)}


@pytest.mark.parametrize("overridable", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize(
    ("opset", "kind"),
    [(opset, kind) for opset in (7, 12, 17, 21) for kind in ("tensor", "rows", "columns")]
    + [(21, "blocks")],
)
def test_weights_dequantize_bit_for_bit(
    opset: int, dtype: str, kind: str, overridable: bool
) -> None:
    random = np.random.default_rng(1)
    info = np.iinfo(dtype)
    grid = grid_of(dtype, kind)
    codes = random.integers(info.min, info.max, SHAPE, dtype, endpoint=True)
    model = weight_graph(opset)
    weight = WeightQdq(grid, codes, overridable_values=overridable, overridable_grid=overridable)
    made = insert_qdq(model, activations={}, weights={"w": weight})
    engine = session(model)
    assert np.array_equal(engine.run(None, ones())[0], dequantized(codes, grid, kind))
    if not overridable:
        assert made == ()
        return
    other = grid_of(dtype, kind, seed=2)
    swapped = codes[::-1].copy()
    values = {"values": swapped, "scale": other.scale, "zero_point": other.zero_point}
    feeds = {one.record.name: values[one.part] for one in made}
    assert np.array_equal(
        engine.run(None, {**ones(), **feeds})[0], dequantized(swapped, other, kind)
    )
    assert np.array_equal(engine.run(None, ones())[0], dequantized(codes, grid, kind))


@pytest.mark.parametrize("kind", ["tensor", "rows", "columns", "blocks"])
@pytest.mark.parametrize("dtype", ["int8", "uint16"])
def test_the_default_without_codes_is_zero_whatever_the_zero_point(dtype: str, kind: str) -> None:
    model = weight_graph(21)
    insert_qdq(model, activations={}, weights={"w": WeightQdq(grid_of(dtype, kind))})
    assert np.array_equal(session(model).run(None, ones())[0], np.zeros(SHAPE, np.float32))


@pytest.mark.parametrize("opset", [17, 21])
def test_half_precision_weights_are_rounded_once_behind_the_product(opset: int) -> None:
    grid = grid_of("int8", "columns")
    codes = np.random.default_rng(1).integers(-128, 127, SHAPE, np.int8, endpoint=True)
    model = weight_graph(opset, "float16")
    insert_qdq(model, activations={}, weights={"w": WeightQdq(grid, codes)})
    got = session(model).run(None, ones("float16"))[0]
    assert got.dtype == np.float16
    assert np.array_equal(got, dequantized(codes, grid, "columns").astype(np.float16))


def test_int32_codes_have_no_zero_point() -> None:
    codes = np.arange(48, dtype=np.int32).reshape(SHAPE) * 1000
    grid = Grid("int32", np.array([2.0**-12], np.float32), np.zeros(1, np.int32))
    model = weight_graph(17)
    insert_qdq(model, activations={}, weights={"w": WeightQdq(grid, codes)})
    assert np.array_equal(session(model).run(None, ones())[0], codes * np.float32(2.0**-12))


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("overridable", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("opset", [7, 17, 21])
def test_activations_take_the_steps_of_their_grid(
    opset: int, dtype: str, overridable: bool, level: Any
) -> None:
    values = np.linspace(-3, 3, 97, dtype=np.float32)
    info = np.iinfo(dtype)
    zero = info.min + (info.max - info.min) // 3
    scale = np.float32(4.0 / (info.max - info.min))
    grid = Grid(dtype, np.array([scale]), np.array([zero], dtype))
    model = activation_graph(opset)
    made = insert_qdq(model, activations={"y": ActivationQdq(grid, overridable)}, weights={})
    engine = session(model, level)

    def expected(scale: np.float32, zero: int) -> Array:
        return (quantized(-values, scale, zero, dtype) - zero).astype(np.float32) * scale

    assert np.array_equal(engine.run(None, {"x": values})[0], expected(scale, zero))
    assert [one.record.shape for one in made] == [(1,)] * len(made)
    if overridable:
        scale, zero = np.float32(scale * 1.7), zero + 3
        feeds = {"y_scale": np.array([scale]), "y_zero_point": np.array([zero], dtype)}
        got = engine.run(None, {"x": values, **feeds})[0]
        assert np.array_equal(got, expected(scale, zero))


def test_half_precision_activations_are_quantized_in_single_precision() -> None:
    values = np.linspace(-3, 3, 97).astype(np.float16)
    grid = Grid("uint8", np.array([0.023], np.float32), np.array([100], np.uint8))
    model = activation_graph(21, "float16")
    insert_qdq(model, activations={"y": ActivationQdq(grid)}, weights={})
    steps = quantized(-values, 0.023, 100, "uint8") - 100
    expected = (steps.astype(np.float32) * np.float32(0.023)).astype(np.float16)
    assert np.array_equal(session(model).run(None, {"x": values})[0], expected)


def test_a_quantized_graph_input_is_read_from_behind_its_dq() -> None:
    values = np.linspace(-3, 3, 97, dtype=np.float32)
    grid = Grid("int8", np.array([0.5], np.float32), np.array([0], np.int8))
    model = activation_graph()
    insert_qdq(model, activations={"x": ActivationQdq(grid)}, weights={})
    expected = -np.rint(values / np.float32(0.5)) * np.float32(0.5)
    assert np.array_equal(session(model).run(None, {"x": values})[0], expected)


def branched(*, branch: bool, bits: int = 8, opset: int = 17, conv: bool = False) -> ModelProto:
    """y = x W, on the grids of a quantized base; with a branch of rank 1, of zeros.

    32 bits: activations, and the weight of the base, stay float; the branch has codes.
    """
    graph = GraphBuilder(seed=5)
    tail = ("height", "width") if conv else ()

    def stored(inputs: Any, outputs: Any) -> tuple[Any, ...]:
        return (outputs, inputs, 1, 1) if conv else (inputs, outputs)

    def linear(x: str, weight: str, output: str) -> str:
        return graph.node("Conv" if conv else "MatMul", [x, weight], f"{weight}_node", output)

    x = graph.input("x", ("rows", 32, *tail))
    h = linear(x, graph.weight("W", *stored(32, 24)), "h")
    if branch:
        graph.input("s", (1,))
        graph.constant("s", np.ones(1, np.float32))
        a = linear(x, graph.weight("A", *stored(32, 1)), "a")
        m = graph.node("Mul", [a, "s"], "scale", "m")
        l_ = linear(m, graph.weight("B", *stored(1, 24)), "l")
        graph.output(graph.node("Add", [h, l_], "sum", "y"), ("rows", 24, *tail))
    else:
        graph.output(graph.node("Identity", [h], "sum", "y"), ("rows", 24, *tail))
    model = graph.model(opset=opset)
    axis = 0 if conv else 1
    activations: dict[str, ActivationQdq] = {}
    weights: dict[str, WeightQdq] = {}
    if bits < 32:
        kind = f"uint{bits}"
        step = 8.0 / (2**bits - 1)
        grid = Grid(kind, np.array([step], np.float32), np.array([2 ** (bits - 1)], kind))
        activations = {name: ActivationQdq(grid) for name in ("x", "h")}
        if branch:
            activations.update(dict.fromkeys("aml", ActivationQdq(grid, overridable=True)))
        random = np.random.default_rng(3)
        codes = random.integers(-128, 127, stored(32, 24), np.int8, endpoint=True)
        of_base = Grid("int8", np.full(24, 0.02, np.float32), np.zeros(24, np.int8), axis)
        weights["W"] = WeightQdq(of_base, codes)
    if branch:
        for name, ranks, dims in (("A", 1, stored(32, RANK)), ("B", 24, stored(RANK, 24))):
            scale = np.full(ranks, 0.01, np.float32)
            weights[name] = WeightQdq(
                Grid("int8", scale, np.zeros(ranks, np.int8), axis),
                overridable_values=True,
                overridable_grid=True,
                dims=dims,
            )
    insert_qdq(model, activations=activations, weights=weights)
    return model


def inputs(rows: int = 5, tail: tuple[int, ...] = ()) -> dict[str, Array]:
    random = np.random.default_rng(7)
    return {"x": random.normal(size=(rows, 32, *tail)).astype(np.float32)}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize(
    ("bits", "opset"), [(8, 17), (8, 21), (16, 17), (16, 21), (32, 17), (32, 21)]
)
def test_a_branch_of_one_zero_rank_leaves_the_base_bit_for_bit(
    bits: int, opset: int, conv: bool, level: Any, rows: int
) -> None:
    alone = session(branched(branch=False, bits=bits, opset=opset, conv=conv), level)
    beside = session(branched(branch=True, bits=bits, opset=opset, conv=conv), level)
    feeds = inputs(rows, (3, 2) if conv else ())
    expected = alone.run(None, feeds)[0]
    for _ in range(3):  # memory that nothing wrote to may hold zeros the first time
        got = beside.run(None, feeds)[0]
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_adapters_switch_ranks_codes_and_encodings(tmp_path: Path, level: Any) -> None:
    """Against the same steps in numpy: at most one step of l beyond, where a tie is near."""
    engine = session(branched(branch=True), level)
    base = engine.run(None, inputs())[0]
    results = []
    for number, rank in enumerate((2, 3)):
        adapter, expected, step = made_adapter(base, rank, seed=number)
        path = tmp_path / f"{number}.onnx_adapter"
        written = ort.AdapterFormat()
        written.set_adapter_version(1)
        written.set_model_version(1)
        written.set_parameters(
            {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in adapter.items()}
        )
        written.export_adapter(str(path))
        results.append((path, expected, step))
    for path, expected, step in (*results, results[0]):
        loaded = ort.LoraAdapter()
        loaded.Load(str(path))
        options = ort.RunOptions()
        options.add_active_adapter(loaded)
        got = engine.run(None, inputs(), options)[0]
        # a and m differ by a step where float sums of other orders straddle a tie; so does l.
        assert np.abs(got - expected).max() <= 1.001 * step
        assert (np.abs(got - expected) > 1e-5).mean() <= 0.05
        assert np.abs(got - base).max() > 10 * step
    assert engine.run(None, inputs())[0].tobytes() == base.tobytes()


def made_adapter(base: Array, rank: int, seed: int) -> tuple[dict[str, Array], Array, float]:
    """The tensors of an adapter, what it gives, and the step of its last grid."""
    random = np.random.default_rng(seed)
    a_codes = random.integers(-127, 127, (32, rank), np.int8, endpoint=True)
    b_codes = random.integers(-127, 127, (rank, 24), np.int8, endpoint=True)
    a_scale = random.uniform(1e-3, 2e-3, rank).astype(np.float32)
    b_scale = random.uniform(1e-3, 2e-3, 24).astype(np.float32)

    def quantize(name: str, values: Array) -> Array:
        reach = float(np.abs(values).max()) * 1.01
        scale = np.float32(2 * reach / 255)
        tensors[f"{name}_scale"] = np.array([scale])
        tensors[f"{name}_zero_point"] = np.array([128], np.uint8)
        return np.asarray((quantized(values, float(scale), 128, "uint8") - 128) * scale)

    tensors: dict[str, Array] = {
        "A_quantized": a_codes,
        "A_scale": a_scale,
        "A_zero_point": np.zeros(rank, np.int8),
        "B_quantized": b_codes,
        "B_scale": b_scale,
        "B_zero_point": np.zeros(24, np.int8),
    }
    step = 8.0 / 255
    x = (quantized(inputs()["x"], np.float32(step), 128, "uint8") - 128) * np.float32(step)
    a = quantize("a", x @ (a_codes * a_scale))
    m = quantize("m", a)
    l_ = quantize("l", m @ (b_codes * b_scale))
    return tensors, base + l_, float(tensors["l_scale"][0])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "uint8", "int16", "uint16"]))
def test_quantizing_what_was_dequantized_gives_the_codes_again(seed: int, dtype: str) -> None:
    random = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    codes = random.integers(info.min, info.max, 64, dtype, endpoint=True)
    zero = int(random.integers(info.min, info.max, endpoint=True))
    scale = np.float32(2.0 ** random.uniform(-20, 3))
    values = (codes.astype(np.int64) - zero).astype(np.float32) * scale
    model = activation_graph(21)
    grid = Grid(dtype, np.array([scale]), np.array([zero], dtype))
    insert_qdq(model, activations={"y": ActivationQdq(grid)}, weights={})
    assert np.array_equal(session(model).run(None, {"x": -values})[0], values)
