"""Packs for quantized bases: the int4 graph of ONNX Runtime GenAI's builder, and Q/DQ graphs that
ONNX Runtime's quantizer makes of an export.

Off they are the base bit for bit. On, the int4 graph is held against the formula on dequantized
weights, which is computed here.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
from lora_quant.config.options import BuildOptions
from lora_quant.errors import GraphError
from lora_quant.runtime.verify.verify import verify
from tests.run_graph import largest
from tests.sample import ROOT

Array = NDArray[Any]
EXPORTS = ROOT / "tests" / "fixtures" / "exports"
ADAPTER = EXPORTS / "adapter"
INT4 = EXPORTS / "genai_int4"
FUSED = {"q_proj": slice(0, 32), "k_proj": slice(32, 48), "v_proj": slice(48, 64)}
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def config_for(graph: Path, adapter: Path = ADAPTER) -> LoraConfig:
    one = AdapterConfig.model_validate({"name": "adapter", "lora_config": adapter})
    cases = [
        UseCaseInputConfig.model_validate(
            {"name": name, "adapter_names": names, "adapter_alphas": alphas, "model_name": graph}
        )
        for name, names, alphas in (("base", [], []), ("on", ["adapter"], [1.0]))
    ]
    return LoraConfig.model_validate({"adapter": [one], "use-case": cases})


def run(model: ModelProto, inputs: dict[str, Array], level: str = "ENABLE_ALL") -> Array:
    """The first output."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, inputs)[0])


def compiled(pack: Path, use_case: str) -> ModelProto:
    """The graph of a pack with the weights of a use case."""
    model = onnx.load(str(pack / "qairt" / "model.onnx"))
    values = load_file(pack / "qairt" / use_case / "lora_weights.safetensors")
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values.pop(tensor.name), tensor.name))
    assert not values
    return model


def with_alpha(inputs: dict[str, Array], alpha: float) -> dict[str, Array]:
    return {**inputs, "lora_alpha": np.array([alpha, 0], np.float32)}


def without_rounding(model: ModelProto) -> ModelProto:
    """MatMulNBits that leaves its inputs as they are (accuracy_level 4 rounds them to 8 bits)."""
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return model


def in_floats(*, with_adapter: bool) -> ModelProto:
    """The int4 graph with MatMuls by W + 2 B A, every W dequantized; lora_alpha / r is 2."""
    model = onnx.load(str(INT4 / "model.onnx"))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    factors = load_file(ADAPTER / "adapter_model.safetensors")
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        given = {a.name: a.i for a in node.attribute}
        packed, scales = stored[node.input[1]], stored[node.input[2]]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(given["N"], -1, 32)
        weight = (codes.astype(np.float32) - 8) * scales.reshape(given["N"], -1, 1)
        weight = weight.reshape(given["N"], -1)[:, : given["K"]].astype(np.float64)
        # /model/layers.0/attn/qkv_proj/MatMul_Q4, or /lm_head/MatMul_Q4
        layer, _, leaf = (*node.name.split("/"), "", "")[2:5]
        for module in FUSED if leaf == "qkv_proj" else [leaf]:
            block = "self_attn" if module in (*FUSED, "o_proj") else "mlp"
            name = f"base_model.model.model.{layer}.{block}.{module}"
            if f"{name}.lora_A.weight" in factors and with_adapter:
                A, B = (factors[f"{name}.lora_{side}.weight"].astype(np.float64) for side in "AB")
                weight[FUSED.get(module, slice(None))] += 2.0 * B @ A
        name = f"{node.name}/float"
        values = weight.T.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        node.CopyFrom(
            helper.make_node("MatMul", [node.input[0], name], list(node.output), name=node.name)
        )
    return model


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(config_for(INT4 / "model.onnx"), tmp_path_factory.mktemp("int4") / "out").output


@pytest.fixture(scope="module")
def int4_inputs() -> dict[str, Array]:
    return load_file(INT4 / "inputs.safetensors")


@pytest.mark.parametrize("level", LEVELS)
def test_int4_off_is_the_base_bit_for_bit(
    int4: Path, int4_inputs: dict[str, Array], level: str
) -> None:
    wanted = run(onnx.load(str(INT4 / "model.onnx")), int4_inputs, level)
    for use_case, alpha in (("base", 1.0), ("on", 0.0)):
        got = run(compiled(int4, use_case), with_alpha(int4_inputs, alpha), level)
        np.testing.assert_array_equal(got, wanted)


def test_int4_on_is_the_formula_on_dequantized_weights(
    int4: Path, int4_inputs: dict[str, Array]
) -> None:
    """Logits of size 2.8, changed by 3.4: measured 1.4e-6, 6 units in the last place of 2.8
    (2**-22), with a factor of 3.
    """
    wanted = run(in_floats(with_adapter=True), int4_inputs)
    plain = run(in_floats(with_adapter=False), int4_inputs)
    got = run(without_rounding(compiled(int4, "on")), with_alpha(int4_inputs, 1.0))
    assert largest(got, wanted) < 4.2e-6
    off = run(without_rounding(compiled(int4, "on")), with_alpha(int4_inputs, 0.0))
    assert largest(off, plain) < 4.2e-6
    assert largest(wanted, plain) > 1


def test_int4_as_it_is_adds_no_noise_of_its_own(int4: Path, int4_inputs: dict[str, Array]) -> None:
    """Its kernels round their inputs to 8 bits: measured 0.042, and 0.064 of the base alone."""
    wanted = run(in_floats(with_adapter=True), int4_inputs)
    plain = run(in_floats(with_adapter=False), int4_inputs)
    noise = largest(run(onnx.load(str(INT4 / "model.onnx")), int4_inputs), plain)
    got = run(compiled(int4, "on"), with_alpha(int4_inputs, 1.0))
    assert 0 < largest(got, wanted) < 2 * noise
    assert noise < 0.05 * largest(wanted, plain)


def test_verify_accepts_int4(int4: Path) -> None:
    assert verify(int4, inputs=INT4 / "inputs.safetensors").ok
    assert verify(int4).ok, "with random inputs"


def test_weights_of_int4_are_read_where_an_adapter_needs_them(tmp_path: Path) -> None:
    """DoRA: g is the magnitude divided by the norms of W + B A."""
    adapter = tmp_path / "dora"
    shutil.copytree(ADAPTER, adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    tensors = load_file(adapter / "adapter_model.safetensors")
    random = np.random.default_rng(0)
    for name, B in [item for item in tensors.items() if "lora_B" in item[0]]:
        magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
        tensors[magnitude] = random.uniform(0.8, 1.6, len(B)).astype(np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    result = build(config_for(INT4 / "model.onnx", adapter), tmp_path / "out")
    points = result.manifest.attach_points
    assert all({v.vector for v in point.vectors} == {"g"} for point in points)
    checked = verify(result.output, inputs=INT4 / "inputs.safetensors")
    assert checked.ok
    assert checked.targets[0].base_exact


def test_nothing_is_merged_into_int4(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nothing can be merged into the weight of") as caught:
        build(config_for(INT4 / "model.onnx"), tmp_path / "out", BuildOptions(merge="on"))
    assert "merge into the float graph" in str(caught.value)
    assert not list(tmp_path.iterdir())


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """One set of inputs."""

    def __init__(self, inputs: dict[str, Array]) -> None:
        self._inputs: Iterator[dict[str, Array]] = iter([inputs])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._inputs, None)


@pytest.fixture(scope="module", params=["QUInt8", "QUInt16"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Q/DQ graph, and of a pack for it."""
    folder = tmp_path_factory.mktemp(str(request.param))
    quantize_static(
        str(EXPORTS / "torchscript" / "model.onnx"),
        str(folder / "model.onnx"),
        _Once(load_file(EXPORTS / "torchscript" / "inputs.safetensors")),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType[request.param],
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Add", "Mul"],
    )
    build(config_for(folder / "model.onnx"), folder / "out")
    return folder


@pytest.mark.parametrize("level", LEVELS)
def test_a_quantized_graph_off_is_the_base_bit_for_bit(quantized: Path, level: str) -> None:
    inputs = load_file(EXPORTS / "torchscript" / "inputs.safetensors")
    wanted = run(onnx.load(str(quantized / "model.onnx")), inputs, level)
    for use_case, alpha in (("base", 1.0), ("on", 0.0)):
        got = run(compiled(quantized / "out", use_case), with_alpha(inputs, alpha), level)
        np.testing.assert_array_equal(got, wanted)
    on = run(compiled(quantized / "out", "on"), with_alpha(inputs, 1.0), level)
    assert largest(on, wanted) > 1


def test_a_quantized_graph_keeps_its_integer_kernels(quantized: Path, tmp_path: Path) -> None:
    counts = []
    for number, graph in enumerate(("model.onnx", "out/qairt/model.onnx")):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        ort.InferenceSession(str(quantized / graph), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        operators = Counter(node.op_type for node in nodes)
        counts.append({op: n for op, n in operators.items() if op.startswith("QLinear")})
    assert counts[0] == counts[1]
    # ONNX Runtime has no integer kernels of 16 bits.
    assert ("QLinearMatMul" in counts[0]) == ("QUInt8" in quantized.name)


def test_verify_accepts_a_quantized_graph(quantized: Path) -> None:
    checked = verify(quantized / "out", inputs=EXPORTS / "torchscript" / "inputs.safetensors")
    assert checked.ok
    assert checked.targets[0].base_exact
