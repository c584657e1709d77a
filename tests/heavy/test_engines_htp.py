"""The engine's doors to the HTP on its emulation: opening, compiling and running, also in children.

The graph is y = W x + B (A x) with uint16 activations and int8 weights; A and B are inputs with
zeros as default. Numbers are compared with ONNX Runtime's CPU kernels, in steps of y's grid.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lora_quant.engines import qnn
from lora_quant.engines.htp_processes import compile_context, run_on_htp
from lora_quant.engines.onnxruntime import open_graph
from lora_quant.errors import VerificationError

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime_qnn"
    ),
]

Array = NDArray[Any]
ROWS, WIDTH, RANK = 4, 32, 8
STEP = 0.01
# Each of the four grids between x and y may round the other way, by one step of a grid that is at
# most as coarse as y's.
MOST_STEPS = 4


class Builder:
    """Nodes and constants of a QDQ graph."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def rounded(self, name: str, scale: float) -> str:
        """`name` on a grid of uint16 around 0."""
        self._grid(name, scale, np.array(32768, np.uint16))
        codes = self._add("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_q")
        return self._add("DequantizeLinear", [codes, f"{name}_scale", f"{name}_zero"], f"{name}_d")

    def weight(self, name: str, values: Array) -> str:
        """int8 codes with a step of 1/100."""
        self.weights.append(numpy_helper.from_array(values, name))
        self._grid(name, 0.01, np.array(0, np.int8))
        return self._add("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_d")

    def product(self, left: str, right: str, name: str, scale: float) -> str:
        return self.rounded(self._add("MatMul", [left, right], name), scale)

    def _add(self, op: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output))
        return output

    def _grid(self, name: str, scale: float, zero: Array) -> None:
        self.weights.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        self.weights.append(numpy_helper.from_array(zero, f"{name}_zero"))

    def branch(self) -> str:
        random = np.random.default_rng(0)
        x = self.rounded("x", 2e-4)
        w = self.weight("w", random.integers(-127, 128, (WIDTH, WIDTH), dtype=np.int8))
        h = self.product(x, w, "h", 0.002)
        a = self.weight("A", np.zeros((WIDTH, RANK), np.int8))
        m = self.product(x, a, "m", 0.002)
        b = self.weight("B", np.zeros((RANK, WIDTH), np.int8))
        return self.rounded(self._add("Add", [h, self.product(m, b, "l", STEP)], "y_raw"), STEP)


def qdq() -> ModelProto:
    builder = Builder()
    y = builder.branch()
    made = helper.make_tensor_value_info
    graph = helper.make_graph(
        builder.nodes,
        "qdq",
        [
            made("x", TensorProto.FLOAT, [ROWS, WIDTH]),
            made("A", TensorProto.INT8, [WIDTH, RANK]),
            made("B", TensorProto.INT8, [RANK, WIDTH]),
        ],
        [made(y, TensorProto.FLOAT, [ROWS, WIDTH])],
        builder.weights,
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("für HTP") / "m ö.onnx"
    onnx.save(qdq(), str(path))
    return path


def feeds(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "A": random.integers(-127, 128, (WIDTH, RANK), dtype=np.int8),
        "B": random.integers(-127, 128, (RANK, WIDTH), dtype=np.int8),
    }


def test_the_provider_is_there() -> None:
    assert qnn.unavailable_reason() is None


def test_a_child_runs_sets_of_inputs_as_this_process_and_the_cpu_do(model: Path) -> None:
    sets = [feeds(1), {"x": feeds(1)["x"]}, feeds(2)]
    outputs = run_on_htp(model, iter(sets))
    here, cpu = qnn.open_on_htp(model), open_graph(model)
    for got, fed in zip(outputs, sets, strict=True):
        (name,) = got
        assert np.array_equal(got[name], here.run(fed)[name])
        steps = np.abs(got[name] - cpu.run(fed)[name]) / STEP
        assert steps.max() <= MOST_STEPS + 1e-3  # the outputs themselves are floats
    first, base, _ = outputs
    assert np.abs(first[name] - base[name]).max() > 100 * STEP


def test_inputs_without_a_value_have_their_defaults(model: Path) -> None:
    graph = qnn.open_on_htp(model)
    fed = feeds(3)
    zeros = {name: np.zeros_like(fed[name]) for name in ("A", "B")}
    (with_zeros,) = graph.run({**fed, **zeros}).values()
    (without,) = graph.run({"x": fed["x"]}).values()
    assert np.array_equal(with_zeros, without)


def test_threads_get_what_each_would_get_alone(model: Path) -> None:
    graph = qnn.open_on_htp(model)
    sets = [feeds(seed) for seed in range(4)]
    alone = [next(iter(graph.run(one).values())) for one in sets]
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for step in range(20):
            which = (number + step) % len(sets)
            (got,) = graph.run(sets[which]).values()
            if not np.array_equal(got, alone[which]):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_compiled_context_gives_the_same_bits(model: Path, tmp_path: Path) -> None:
    bare = qdq()
    kept = [tensor for tensor in bare.graph.initializer if tensor.name not in ("A", "B")]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    source = tmp_path / "bare.onnx"
    onnx.save(bare, str(source))
    files = compile_context(source, tmp_path / "m_ctx.onnx")
    assert [file.name for file in files] == ["m_ctx.onnx", "m_ctx_qnn.bin"]
    context, graph = qnn.open_on_htp(files[0]), qnn.open_on_htp(model)
    (wanted,) = graph.run(feeds(5)).values()
    (got,) = context.run(feeds(5)).values()
    assert np.array_equal(got, wanted)


def test_what_the_htp_does_not_take_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = qdq()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    source = tmp_path / "dynamic.onnx"
    onnx.save(model, str(source))
    with pytest.raises(VerificationError, match="compiling the graph for the HTP was refused"):
        compile_context(source, tmp_path / "m_ctx.onnx")
    with pytest.raises(VerificationError, match="ONNX Runtime cannot load the graph"):
        qnn.open_on_htp(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_process_keeps_one_architecture(model: Path) -> None:
    qnn.open_on_htp(model)
    with pytest.raises(VerificationError, match="architecture 73, got 75"):
        qnn.open_on_htp(model, htp_arch="75")
    (got,) = run_on_htp(model, [feeds(1)], htp_arch="75")
    assert got


def test_a_child_that_takes_too_long_is_ended(model: Path) -> None:
    with pytest.raises(VerificationError, match=r"did not finish the graph within 0.05 s"):
        run_on_htp(model, [feeds(1)], seconds=0.05)
