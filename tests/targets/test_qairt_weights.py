"""The weights file of a use case, read back by the safetensors library."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from tests.adapters.builders import pair, write
from tests.builders import attention, save

MODULE = "model.layers.0.self_attn.q_proj"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_have_the_type_of_the_graph(tmp_path: Path, dtype: str) -> None:
    """Rounded once from what was trained; a bfloat16 graph can be built, though not run here."""
    tensors = pair(MODULE, rank=3, features=(8, 8))
    adapter = write(tmp_path / "a", tensors, r=3, target_modules=["q_proj"])
    model = save(attention(dtype=dtype).model(), tmp_path / "base.onnx")
    use_case = {"name": "on", "adapter_names": ["a"], "adapter_alphas": [1.0], "model_name": model}
    config = LoraConfig.model_validate(
        {"adapter": [{"name": "a", "lora_config": adapter}], "use-case": [use_case]}
    )
    build(config, tmp_path / "out")
    found = load_file(tmp_path / "out" / "qairt" / "on" / "lora_weights.safetensors")
    for letter in "AB":
        name = f"{MODULE}.lora_{letter}.weight"
        trained = tensors[f"base_model.model.{name}"].astype(DTYPES[dtype]).T
        assert found[name].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(found[name], trained)
