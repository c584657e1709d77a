"""A use case's graph as ONNX Runtime GenAI's builder writes it: lora_alpha / r is in B.

The graphs are described in tests/fixtures/make_branch_exports.py, the logits in make_exports.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.errors import AdapterError
from tests.run_graph import largest, run_use_case
from tests.sample import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
BASE = FIXTURES / "branch_exports" / "plain" / "genai_fp32" / "model.onnx"
GRAPH = FIXTURES / "branch_exports" / "genai_fp32" / "model.onnx"
LOGITS = load_file(FIXTURES / "exports" / "logits.safetensors")
INPUTS = load_file(FIXTURES / "exports" / "genai_fp32" / "inputs.safetensors")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(alpha: int) -> LoraConfig:
    """The adapter has rank 4; it was trained with lora_alpha 8."""
    adapter = {"name": "tone", "rank": 4, "alpha": alpha, "target_modules": LINEARS}
    use_cases = [
        {"name": "base", "adapter_names": [], "adapter_alphas": [], "model_name": str(BASE)},
        {
            "name": "on",
            "adapter_names": ["tone"],
            "adapter_alphas": [1.0],
            "model_name": str(GRAPH),
        },
    ]
    return LoraConfig.model_validate(
        {"adapter": [{"name": "tone", "lora_config": adapter}], "use-case": use_cases}
    )


def test_with_a_factor_of_one_the_logits_are_those_of_peft(tmp_path: Path) -> None:
    pack = build(config(alpha=4), tmp_path / "out").output / "qairt"
    for strength, wanted in ((1.0, LOGITS["adapter"]), (0.0, LOGITS["base"])):
        feeds = {**INPUTS, "lora_alpha": np.array([strength, 0.0], np.float32)}
        weights = pack / "on" / "lora_weights.safetensors"
        got = next(iter(run_use_case(pack / "model.onnx", weights, feeds).values()))
        # Logits are of size 2.7: 7 units in its last place (2**-22), with a factor of 3.
        assert largest(got, wanted) < 5e-6


def test_the_factor_of_the_training_is_refused_since_b_has_it(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the scale seems to be in the weights") as caught:
        build(config(alpha=8), tmp_path / "out")
    assert "set alpha to the rank" in (caught.value.hint or "")
