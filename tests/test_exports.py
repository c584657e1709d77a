"""One tiny Llama as several exporters write it, compiled without a mapping, against PEFT's logits.

The fixtures are described in tests/fixtures/make_exports.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
from lora_quant.runtime.verify.verify import verify
from tests.run_graph import Array, largest, run_use_case
from tests.sample import ROOT

EXPORTS = ROOT / "tests" / "fixtures" / "exports"
LOGITS = load_file(EXPORTS / "logits.safetensors")

# Logits are of size 2.7, and the adapter changes them by 3.6. float32: measured 1.7e-6, 7 units
# in the last place of 2.7 (2**-22). float16: measured 4.1e-3, 2 units of 2.7 (2**-9).
# Each with a factor of 3.
ATOL = {"torchscript": 5e-6, "dynamo": 5e-6, "genai_fp32": 5e-6, "genai_fp16": 1.2e-2}
FUSED = {"genai_fp32", "genai_fp16"}
LAYERS = 2


def config_for(exporter: str) -> LoraConfig:
    graph = EXPORTS / exporter / "model.onnx"
    adapter = AdapterConfig(name="adapter", lora_config=EXPORTS / "adapter")  # type: ignore[call-arg]
    use_cases = [
        UseCaseInputConfig.model_validate(
            {"name": name, "adapter_names": names, "adapter_alphas": alphas, "model_name": graph}
        )
        for name, names, alphas in (("base", [], []), ("on", ["adapter"], [1.0]))
    ]
    return LoraConfig.model_validate({"adapter": [adapter], "use-case": use_cases})


def logits(pack: Path, exporter: str, use_case: str, alpha: float) -> Array:
    inputs = load_file(EXPORTS / exporter / "inputs.safetensors")
    inputs["lora_alpha"] = np.array([alpha, 0.0], np.float32)  # the second slot is idle
    weights = pack / "qairt" / use_case / "lora_weights.safetensors"
    outputs = run_use_case(pack / "qairt" / "model.onnx", weights, inputs)
    return next(iter(outputs.values()))


@pytest.mark.parametrize("exporter", list(ATOL))
def test_logits_are_those_of_peft(exporter: str, tmp_path: Path) -> None:
    result = build(config_for(exporter), tmp_path / "out")
    points = result.manifest.attach_points
    assert len(points) == LAYERS * (5 if exporter in FUSED else 7)
    assert sum(len(p.modules) for p in points) == LAYERS * 7
    on = logits(result.output, exporter, "on", 1.0)
    assert largest(on, LOGITS["adapter"]) < ATOL[exporter]
    off = logits(result.output, exporter, "on", 0.0)
    assert largest(off, LOGITS["base"]) < ATOL[exporter]
    assert largest(LOGITS["adapter"], LOGITS["base"]) > 50 * ATOL[exporter]


@pytest.mark.parametrize("exporter", list(ATOL))
def test_base_use_case_is_bit_for_bit_the_base_graph(exporter: str, tmp_path: Path) -> None:
    result = build(config_for(exporter), tmp_path / "out")
    inputs = load_file(EXPORTS / exporter / "inputs.safetensors")
    expected = run_use_case(EXPORTS / exporter / "model.onnx", None, inputs)
    got = logits(result.output, exporter, "base", 1.0)
    np.testing.assert_array_equal(got, next(iter(expected.values())))


@pytest.mark.parametrize("exporter", list(ATOL))
def test_verify_accepts_it(exporter: str, tmp_path: Path) -> None:
    build(config_for(exporter), tmp_path / "out")
    result = verify(tmp_path / "out", inputs=EXPORTS / exporter / "inputs.safetensors")
    assert result.ok
    assert verify(tmp_path / "out").ok, "with random inputs"
    logits_error = next(e for e in result.errors if e.use_case == "on" and e.effect > 0)
    assert logits_error.error < logits_error.effect / 50
