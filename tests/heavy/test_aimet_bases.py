"""Q/DQ graphs that AIMET writes, as bases: off, a branched one is the base bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from lora_quant.graph.records import Storage
from tests.builders import GraphBuilder
from tests.graph.helpers import all_points, branch, opened
from tests.graph.test_quantized_bases_exact import LEVELS, OFF, run

pytestmark = [
    pytest.mark.heavy,
    # AIMET hands arrays of ONNX to torch, which warns once that they are read-only.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def aimet() -> None:
    pytest.importorskip("aimet_onnx")


def float_graph() -> ModelProto:
    """Three linears; AIMET gives Add and Relu one grid, so that the first one has none."""
    graph = GraphBuilder()
    graph.input("x", (4, 16))
    y = graph.matmul("/up/MatMul", "x", in_features=16, out_features=24, weight="up.weight")
    y = graph.node("Add", [y, graph.weight("up.bias", 24)], "/up/Add")
    y = graph.node("Relu", [y], "/act/Relu")
    y = graph.matmul("/gate/MatMul", y, in_features=24, out_features=24, weight="gate.weight")
    y = graph.matmul("/down/MatMul", y, in_features=24, out_features=8, weight="down.weight")
    graph.output(y, (4, 8))
    return graph.model(ir_version=10)


def quantized(activations: str, x: Any, **options: bool) -> ModelProto:
    from aimet_onnx.quantsim import QuantizationSimModel

    sim = QuantizationSimModel(
        float_graph(),
        param_type="int8",
        activation_type=activations,
        providers=["CPUExecutionProvider"],
    )
    sim.compute_encodings([{"x": x}])
    found: ModelProto = sim.to_onnx_qdq(**options)
    return found


@pytest.mark.parametrize("export_int32_bias", [False, True])
@pytest.mark.parametrize("prequantize_constants", [False, True])
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_branched_graph_is_the_base(
    activations: str, prequantize_constants: bool, export_int32_bias: bool, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    options = {
        "prequantize_constants": prequantize_constants,
        "export_int32_bias": export_int32_bias,
    }
    model = quantized(activations, x, **options)
    wanted = [run(model, {"x": x}, level) for level in LEVELS]
    base = opened(model, tmp_path)
    points = all_points(base)
    assert {point.linear.storage for point in points} == {Storage.DEQUANTIZED}
    assert {point.name: point.grid is not None for point in points} == {
        "up": False,
        "gate": True,
        "down": True,
    }
    branch(base, points)
    for level, outputs in zip(LEVELS, wanted, strict=True):
        got = run(base.model.proto, {"x": x, **OFF}, level)
        np.testing.assert_array_equal(got, outputs)
        assert len(np.unique(outputs)) > 5
