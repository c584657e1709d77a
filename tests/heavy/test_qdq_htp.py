"""Q/DQ as it is inserted, compiled for the emulated HTP: every node accepted, numbers the CPU's.

A and B are codes that arrive as graph inputs, on constant grids per tensor; the base's weight is a
constant on a grid per channel; activations have 16 bits. Below opset 21 their Q/DQ are of
com.microsoft.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import ActivationQdq, WeightQdq
from tests.builders import GraphBuilder

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

Array = NDArray[Any]
RUNNER = Path(__file__).with_name("run_on_htp.py")
SECONDS = 60
IN, OUT, RANK = 32, 24, 8
REACH = {"x": 8.0, "h": 80.0, "a": 40.0, "m": 40.0, "l": 40.0, "y": 100.0, "s": 4.0}
STEPS = 65535


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime_qnn is not installed")


def quantized(form: str, opset: int) -> ModelProto:
    """y = x W + (s * (x A)) B, all of it on grids; A and B are zero until they are fed."""
    graph = GraphBuilder(seed=5)
    conv = form == "conv"
    operator = "Conv" if conv else "MatMul"

    def activation(channels: int) -> tuple[int, ...]:
        return (1, channels, 4, 4) if conv else (1, 16, channels)

    def weight(name: str, inputs: int, outputs: int) -> str:
        shape = (outputs, inputs, 1, 1) if conv else (inputs, outputs)
        return graph.weight(name, *shape)

    x = graph.input("x", activation(IN))
    h = graph.node(operator, [x, weight("W", IN, OUT)], "base", "h")
    a = graph.node(operator, [x, weight("A", IN, RANK)], "down", "a")
    s = graph.constant("s", np.ones((1, RANK, 1, 1) if conv else RANK, np.float32))
    m = graph.node("Mul", [a, s], "scale", "m")
    l_ = graph.node(operator, [m, weight("B", RANK, OUT)], "up", "l")
    for name, channels in (("h", OUT), ("a", RANK), ("m", RANK), ("l", OUT)):
        graph.value(name, activation(channels))
    graph.output(graph.node("Add", [h, l_], "sum", "y"), activation(OUT))
    model = graph.model(opset=opset, ir_version=10)
    middle = np.array([STEPS // 2 + 1], np.uint16)
    activations = {
        name: ActivationQdq(Grid("uint16", np.array([reach / STEPS], np.float32), middle))
        for name, reach in REACH.items()
    }
    shape = (OUT, IN, 1, 1) if conv else (IN, OUT)
    scale = np.full(OUT, 0.02, np.float32)
    of_base = Grid("int8", scale, np.zeros(OUT, np.int8), axis=0 if conv else 1)
    of_branch = Grid("int8", np.array([0.01], np.float32), np.zeros(1, np.int8))
    weights = {"W": WeightQdq(of_base, codes(shape, seed=3))}
    for name in "AB":
        weights[name] = WeightQdq(of_branch, overridable_values=True)
    insert_qdq(model, activations=activations, weights=weights)
    return model


def codes(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).integers(-127, 127, shape, np.int8, endpoint=True)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("form", ["matmul", "conv"])
def test_codes_as_inputs_run_on_the_htp_alone(form: str, opset: int, tmp_path: Path) -> None:
    """Steps of the output's grid: 1 with zeros, 4 measured with a branch; twice that is allowed.

    An engine that takes the grid of another tensor, or the wrong sign, is off by thousands.
    """
    model = quantized(form, opset)
    (tmp_path / "qdq.onnx").write_bytes(model.SerializeToString())
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    x = np.random.default_rng(0).standard_normal(shapes["x"]).astype(np.float32)
    results = []
    for filled, most in ((False, 2), (True, 8)):
        feeds: dict[str, Array] = {"x": x}
        for seed, name in enumerate(("A_quantized", "B_quantized")):
            made = codes(shapes[name], seed)
            feeds[name] = made if filled else np.zeros_like(made)
        np.savez(tmp_path / "feeds.npz", allow_pickle=False, **feeds)
        command = [sys.executable, str(RUNNER), "qdq.onnx", "feeds.npz", "result.npz"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        result = np.load(tmp_path / "result.npz")
        htp, cpu = result["htp"], result["cpu"]
        assert np.abs(htp - cpu).max() <= (most + 0.01) * REACH["y"] / STEPS
        results.append(htp)
    assert np.abs(results[1] - results[0]).max() > 1000 * REACH["y"] / STEPS
