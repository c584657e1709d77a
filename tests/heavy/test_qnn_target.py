"""Packs of the qnn target on the vendor's emulated HTP: every node accepted, the CPU's numbers.

Each graph runs in a process of its own, with fallback to the CPU disabled. Both engines are given
what the adapter files hold. Differences are in steps of the grid of the output.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.engines.htp_processes import run_on_htp
from lora_quant.graph.device.grids import range_grid
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import ActivationQdq, WeightQdq
from tests.sample import ALPHAS, CONFIG, ROOT, SAMPLE
from tests.targets.qnn_case import (
    CONVOLUTION,
    FUSED,
    MLP,
    Adapter,
    Case,
    convolution,
    fused,
    mlp,
    run,
    sqnr,
    turned,
)

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

Array = NDArray[Any]
SECONDS = 120.0
EXPORTS = ROOT / "tests" / "fixtures" / "exports"
MIXED = {"base": {}, "p": {"p": 1.0}, "q": {"q": 1.0}, "both": {"p": 1.0, "q": 0.6}}


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime_qnn is not installed")


def adapter_values(pack: Path, use_case: str) -> dict[str, Array]:
    path = str(pack / "qnn" / f"{use_case}.onnx_adapter")
    file = onnxruntime.AdapterFormat.read_adapter(path)
    return {name: np.array(value.numpy()) for name, value in file.get_parameters().items()}


def on_both(
    pack: Path, feeds: Mapping[str, Array], use_cases: list[str], graph: str = "model.onnx"
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The output of each use case on the HTP and on the CPU; "" is a run without an adapter."""
    every = [{**feeds, **(adapter_values(pack, name) if name else {})} for name in use_cases]
    found = run_on_htp(pack / "qnn" / graph, every, seconds=SECONDS)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(pack / "qnn" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (output,) = [value.name for value in session.get_outputs()]
    htp = {name: one[output] for name, one in zip(use_cases, found, strict=True)}
    cpu = {name: session.run(None, one)[0] for name, one in zip(use_cases, every, strict=True)}
    return htp, cpu


def steps(pack: Path, scale: str, one: Array, other: Array) -> float:
    """The largest difference in steps of the output."""
    model = onnx.load(str(pack / "qnn" / "model.onnx"), load_external_data=False)
    (tensor,) = [t for t in model.graph.initializer if t.name == scale]
    return float(np.abs(one - other).max() / numpy_helper.to_array(tensor).item())


def mixed(folder: Path, model: ModelProto, **more: Any) -> Case:
    """Two adapters of different ranks, alone and together."""
    adapters = more.pop("adapters", {"p": Adapter(4), "q": Adapter(8)})
    use_cases = more.pop("use_cases", MIXED)
    case = Case(folder, model, more.pop("modules", MLP), adapters, use_cases, **more)
    case.prepare()
    return case


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "matmul": ({"model": mlp([1, 8], bias=False)}, {}, 12),
    "bias": ({"model": mlp([1, 8], bias=True)}, {}, 12),
    "two axes": ({"model": mlp([8], bias=True)}, {}, 12),
    "one token": ({"model": mlp([1, 1], bias=False)}, {}, 12),
    "convolution": ({"model": convolution(), "modules": CONVOLUTION}, {}, 12),
    "symbolic axes": (
        {"model": mlp(["batch", 8], bias=True), "dims": {"batch": 2}},
        {"dims": ("batch=2",)},
        12,
    ),
    "alpha per rank": ({"model": mlp([1, 8], bias=False)}, {"alpha_layout": "rank"}, 12),
    "8-bit activations": (
        {"model": mlp([1, 8], bias=True), "bits": 8},
        {"activation_bits": 8},
        8,
    ),
    "16-bit weights": ({"model": mlp([1, 8], bias=False)}, {"weight_bits": 16}, 20),
    "dora": (
        {
            "model": mlp([1, 8], bias=True),
            "adapters": {"p": Adapter(4, kind="dora"), "q": Adapter(8)},
            "use_cases": {"base": {}, "p": {"p": 1.0}, "q": {"q": 1.0}},
        },
        {},
        12,
    ),
    "fused projection": ({"model": fused(), "modules": FUSED}, {}, 12),
    "weights of [out, in]": ({"model": turned()}, {}, 12),
    "rank 1": (
        {
            "model": mlp([1, 1], bias=False),
            "adapters": {"p": Adapter(1)},
            "use_cases": {"base": {}, "p": {"p": 1.0}},
        },
        {},
        16,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_use_case_is_as_on_the_cpu(form: str, tmp_path: Path) -> None:
    """Measured with 16-bit activations: up to 7 steps, of 65536, against 3 without branches, and 10
    with one rank; with 16-bit weights up to 10; with 8-bit activations up to 4 of 256. Almost twice
    as many are allowed.
    """
    case_options, build_options, most = FORMS[form]
    case = mixed(tmp_path, **case_options)
    pack = tmp_path / "pack"
    build(case.config, pack, BuildOptions(targets=("qnn",), **build_options))
    htp, cpu = on_both(pack, case.feeds(100), ["", *case.use_cases])
    for use_case in case.use_cases:
        assert steps(pack, "y_scale", htp[use_case], cpu[use_case]) <= most, use_case
    np.testing.assert_array_equal(htp[""], htp["base"])


@pytest.mark.parametrize(
    "form", ["matmul", "bias", "convolution", "8-bit activations", "alpha per rank", "rank 1"]
)
def test_strengths_of_zero_leave_the_base_bit_for_bit(form: str, tmp_path: Path) -> None:
    """With the weights of the adapter in place. Where 0 of m is not the middle code, up to three
    steps of every branch were measured.
    """
    case_options, build_options, _ = FORMS[form]
    case = mixed(tmp_path, **case_options)
    pack = tmp_path / "pack"
    build(case.config, pack, BuildOptions(targets=("qnn",), **build_options))
    every = []
    for use_case in case.use_cases:
        values = adapter_values(pack, use_case)
        values["lora_alpha"] = np.zeros_like(values["lora_alpha"])
        every.append({**case.feeds(100), **values})
    base, *others = run_on_htp(pack / "qnn" / "model.onnx", every, seconds=SECONDS)
    for found in others:
        np.testing.assert_array_equal(found["y"], base["y"])


def test_a_context_is_the_graph_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "ä b"
    folder.mkdir()
    case = mixed(folder, mlp([1, 8], bias=True))
    pack = folder / "pack"
    build(case.config, pack, BuildOptions(targets=("qnn",), qnn_context=True))
    names = ["", *case.use_cases]
    graph, _ = on_both(pack, case.feeds(100), names)
    context, _ = on_both(pack, case.feeds(100), names, "model_ctx.onnx")
    for name in names:
        np.testing.assert_array_equal(context[name], graph[name])
    assert np.any(context["both"] != context["base"])


def quantized(model: ModelProto, feeds: list[dict[str, Array]]) -> ModelProto:
    """A Q/DQ graph of the model as another tool would write it, with names of its own."""
    made = ModelProto()
    made.CopyFrom(model)
    made.opset_import[0].version = 21
    names = [n for node in made.graph.node for n in node.output]
    activations = {}
    seen = [{**f, **dict(zip(names, run(model, f, names), strict=True))} for f in feeds]
    for name in ("x", *names):
        values = np.stack([one[name] for one in seen])
        low, high = 1.5 * float(values.min()), 1.5 * float(values.max())
        activations[name] = ActivationQdq(range_grid(low, high, "uint16"))
    weights = {}
    for tensor in made.graph.initializer:
        values = numpy_helper.to_array(tensor)
        scale = (np.abs(values).max(axis=0) / 127).astype(np.float32)
        grid = Grid("int8", scale, np.zeros(scale.shape, np.int8), axis=1)
        weights[tensor.name] = WeightQdq(grid, np.rint(values / scale).astype(np.int8))
    insert_qdq(made, activations=activations, weights=weights)
    del made.graph.value_info[:]
    stored = {tensor.name for tensor in model.graph.initializer}
    return _renamed(made, {"x", *names, *stored})


def _renamed(model: ModelProto, kept: set[str]) -> ModelProto:
    def other(name: str) -> str:
        return name if name in kept else f"tool/{name}/0"

    for node in model.graph.node:
        if node.op_type.endswith("Linear"):
            node.name = f"tool/{node.name}/1"
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = other(name)
    for tensor in model.graph.initializer:
        tensor.name = other(tensor.name)
    return model


def test_a_quantized_base_keeps_its_own_grids(tmp_path: Path) -> None:
    plain = Case(tmp_path, mlp([1, 8], bias=False), MLP, {}, {})
    base = quantized(plain.model, [plain.feeds(seed) for seed in range(8)])
    case = mixed(tmp_path, base)
    pack = tmp_path / "pack"
    build(case.config, pack, BuildOptions(targets=("qnn",)))
    feeds = case.feeds(100)
    htp, cpu = on_both(pack, feeds, ["", *case.use_cases])
    np.testing.assert_array_equal(cpu["base"], run(base, feeds, ["y"])[0])
    for use_case in case.use_cases:
        # Both ends are on the grid of y, on which 15 steps were measured.
        assert steps(pack, "tool/y_scale/0", htp[use_case], cpu[use_case]) <= 24, use_case
        assert use_case == "base" or sqnr(case.float_output(use_case, feeds), cpu[use_case]) > 34


LLAMA = {
    f"model.layers.{layer}.{leaf}": sizes
    for layer in (0, 1)
    for leaf, sizes in {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }.items()
}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_what_exporters_write_runs_on_the_htp(exporter: str, tmp_path: Path) -> None:
    """Masks that are computed, or are constants of -3e38; IsNaN; Reciprocal: all that is in these
    graphs. HTP and CPU are 49 to 57 dB apart; 3 less are allowed.
    """
    model = onnx.load(str(EXPORTS / exporter / "model.onnx"))
    case = mixed(tmp_path, model, modules=LLAMA)
    pack = tmp_path / "pack"
    build(case.config, pack, BuildOptions(targets=("qnn",)))
    feeds = case.feeds(0)
    htp, cpu = on_both(pack, feeds, ["", *case.use_cases])
    for use_case in case.use_cases:
        assert sqnr(cpu[use_case], htp[use_case]) > 46, use_case
    np.testing.assert_array_equal(htp[""], htp["base"])


def test_the_whole_sample_runs_on_the_htp(tmp_path: Path) -> None:
    """Norms and attention put HTP and CPU 57.6 to 61.2 dB apart; 3 dB more are allowed. It is 36
    where the second factors of attention have no signed grid, as in the graphs that AIMET writes.
    """
    pack = tmp_path / "pack"
    build(CONFIG, pack, BuildOptions(targets=("qnn",)))
    prompt = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"][:1]
    htp, cpu = on_both(pack, {"input_ids": prompt}, ["", *ALPHAS])
    for use_case in ALPHAS:
        assert sqnr(cpu[use_case], htp[use_case]) > 54, use_case
    np.testing.assert_array_equal(htp[""], htp["base"])
