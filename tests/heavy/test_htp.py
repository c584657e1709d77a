"""Compiled graphs on the vendor's emulated HTP: every node accepted, numbers those of the CPU.

AIMET writes the QDQ graph (int8 weights per channel, uint16 activations, int32 biases); the engine
compiles it for the device and runs it on the host. Numbers are compared with ONNX Runtime's CPU
kernels on the same QDQ graph, in steps of the output's grid.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult, build
from lora_quant.config.options import AlphaLayout, BuildOptions
from tests.heavy.aimet_sim import encodings_path, load, pack_model, simulate, sqnr
from tests.sample import ALPHAS, CONFIG, SAMPLE

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

Array = NDArray[Any]
RUNNER = Path(__file__).with_name("run_on_htp.py")
WIDTH, HIDDEN = 32, 48
SECONDS = 30  # the slowest graph that compiles takes 6
PROMPT = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"][:1]


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    pytest.importorskip("aimet_onnx")
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime_qnn is not installed")


def on_htp(model: ModelProto, feeds: Mapping[str, Array], work: Path) -> tuple[Array, Array]:
    """The first output on the HTP and on the CPU."""
    onnx.save(model, str(work / "qdq.onnx"))
    np.savez(work / "feeds.npz", allow_pickle=False, **feeds)
    command = [sys.executable, str(RUNNER), "qdq.onnx", "feeds.npz", "result.npz"]
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"the engine did not compile the graph within {SECONDS} s")
    assert done.returncode == 0, done.stderr
    result = np.load(work / "result.npz")
    return result["htp"], result["cpu"]


def output_step(model: ModelProto) -> float:
    """The scale of the graph's output: that of the DequantizeLinear that makes it."""
    (node,) = [n for n in model.graph.node if model.graph.output[0].name in n.output]
    (scale,) = [t for t in model.graph.initializer if t.name == node.input[1]]
    return float(numpy_helper.to_array(scale))


# An MLP: every form of the branch without the noise of norms and attention.


def mlp(tokens: int) -> ModelProto:
    """x [1, tokens, 32] -> up -> Relu -> down -> y [1, tokens, 32]."""
    rng = np.random.default_rng(1)
    weights = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["hidden"], name="/up/MatMul"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="/Relu"),
        helper.make_node("MatMul", ["positive", "down.weight"], ["y"], name="/down/MatMul"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, tokens, WIDTH])
        for name in ("x", "y")
    ]
    initializers = [
        numpy_helper.from_array(_random(rng, shape, shape[0]), f"{name}.weight")
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _random(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    values: Array = rng.standard_normal(shape) / fan_in**0.5
    return values.astype(np.float32)


def write_adapter(folder: Path, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["up", "down"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tensors = {}
    for module, (inputs, outputs) in {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}.items():
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = _random(rng, (rank, inputs), inputs)
        tensors[f"{key}.lora_B.weight"] = _random(rng, (outputs, rank), rank)
    save_file(tensors, str(folder / "adapter_model.safetensors"))


def build_mlp(
    folder: Path, tokens: int, ranks: tuple[int, ...], layout: AlphaLayout
) -> BuildResult:
    """One use case with an adapter per rank."""
    onnx.save(mlp(tokens), str(folder / "base.onnx"))
    names = [f"adapter_{number}" for number in range(len(ranks))]
    for seed, (name, rank) in enumerate(zip(names, ranks, strict=True), start=2):
        write_adapter(folder / name, rank, seed)
    use_case = {"name": "used", "adapter_names": names, "adapter_alphas": [1.0] * len(names)}
    config = {
        "adapter": [{"name": name, "lora_config": name} for name in names],
        "use-case": [{**use_case, "model_name": "base.onnx"}],
    }
    path = folder / "lora_config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return build(path, folder / "pack", BuildOptions(alpha_layout=layout))


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("ranks", [(1,), (4,), (16,), (4, 8), (1, 1), (8, 8, 16)], ids=str)
def test_branches_run_on_the_htp(
    ranks: tuple[int, ...], tokens: int, layout: AlphaLayout, tmp_path: Path
) -> None:
    """Measured up to 4 steps of the output, of 65536, against 3 without branches; 8 are allowed.

    The engine requantizes with multipliers of its own after each product and sum, which moves a
    result by a step or two, and one step of an inner grid is about one of the output's.

    A quantized MatMul with a weight of one row, applied to one row ([1, 1] @ [1, N], N > 1), sends
    the engine's compiler into a loop that takes all memory: alpha @ E with one slot, and B of rank
    1 in a graph of one token. No graph may hold one.
    """
    result = build_mlp(tmp_path, tokens, ranks, layout)
    model = pack_model(result.output, "used")
    (alpha,) = [v for v in model.graph.input if v.name == "lora_alpha"]
    shape = [d.dim_value for d in alpha.type.tensor_type.shape.dim]
    rng = np.random.default_rng(7)
    feeds = [
        {
            "x": rng.standard_normal((1, tokens, WIDTH)).astype(np.float32),
            "lora_alpha": rng.uniform(0.25, 1.0, shape).astype(np.float32),
        }
        for _ in range(16)
    ]
    sim = simulate(model)
    sim.compute_encodings(feeds)
    qdq = sim.to_onnx_qdq(export_int32_bias=True)
    htp, cpu = on_htp(qdq, feeds[0], tmp_path)
    assert np.abs(htp - cpu).max() <= 8 * output_step(qdq)


# The sample, with the overrides that the pack brings.


def constant_mask(model: ModelProto) -> None:
    """Put a constant in place of Trilu, the one operation that the engine does not have."""
    (node,) = [n for n in model.graph.node if n.op_type == "Trilu"]
    length = PROMPT.shape[1]
    mask = np.triu(np.full((1, 1, length, length), -100.0, np.float32), 1)
    tensor = numpy_helper.from_array(mask)
    node.CopyFrom(helper.make_node("Constant", [], [node.output[0]], name=node.name, value=tensor))


@pytest.fixture(scope="module")
def base_sqnr(tmp_path_factory: pytest.TempPathFactory) -> float:
    """HTP against CPU on the sample's base graph, which has no branches."""
    sim = simulate(onnx.load(str(SAMPLE / "model" / "model.onnx")))
    load(sim, str(SAMPLE / "encodings" / "base.encodings"))
    qdq = sim.to_onnx_qdq(export_int32_bias=True)
    constant_mask(qdq)
    htp, cpu = on_htp(qdq, {"input_ids": PROMPT}, tmp_path_factory.mktemp("base"))
    return sqnr(cpu, htp)


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_the_whole_sample_runs_on_the_htp(
    layout: AlphaLayout, base_sqnr: float, tmp_path: Path
) -> None:
    """Norms and attention put HTP and CPU 36.4 dB apart without branches; 1 dB more is allowed."""
    result = build(CONFIG, tmp_path / "pack", BuildOptions(alpha_layout=layout))
    records = {use_case.name: use_case for use_case in result.manifest.use_cases}
    for use_case, strengths in ALPHAS.items():
        alpha = np.array(strengths, np.float32)
        if layout == "rank":
            alpha = np.zeros(result.manifest.max_rank, np.float32)
            for slot in records[use_case].slots:
                alpha[slot.start : slot.start + slot.rank] = slot.alpha * slot.scale
        sim = simulate(pack_model(result.output, use_case))
        load(sim, encodings_path(result.output, use_case))
        qdq = sim.to_onnx_qdq(export_int32_bias=True)
        constant_mask(qdq)
        htp, cpu = on_htp(qdq, {"input_ids": PROMPT, "lora_alpha": alpha}, tmp_path)
        assert sqnr(cpu, htp) > base_sqnr - 1.0, use_case
