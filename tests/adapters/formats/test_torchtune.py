"""torchtune adapters; the order of rows is held against its own conversion elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.formats import torch_bytes
from tests.adapters.formats.formula import Array

CONFIG = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
LLAMA = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}


def pair(part: str, out: int = 8, layer: str = "layers.0.") -> dict[str, Array]:
    rng = np.random.default_rng(out)
    return {
        f"{layer}{part}.lora_a.weight": rng.normal(size=(2, 6)).astype(np.float32),
        f"{layer}{part}.lora_b.weight": rng.normal(size=(out, 2)).astype(np.float32),
    }


def opened(
    tmp_path: Path, tensors: dict[str, Array], model: Any = None, config: Any = CONFIG
) -> Checkpoint:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    if model is not None:
        (tmp_path / "config.json").write_text(json.dumps(model), encoding="utf-8")
    return open_checkpoint(tmp_path)


def test_names_are_those_of_transformers(tmp_path: Path) -> None:
    parts = {
        "attn.v_proj": "self_attn.v_proj",
        "attn.output_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.gate_proj",
        "mlp.w2": "mlp.down_proj",
        "mlp.w3": "mlp.up_proj",
    }
    tensors = pair("output", layer="")
    for part in parts:
        tensors |= pair(part)
    targets = ["v_proj", "output_proj", "w1", "w2", "w3", "output"]
    checkpoint = opened(tmp_path, tensors, config=CONFIG | {"target_modules": targets})
    assert checkpoint.format == "torchtune"
    modules = ["lm_head", *(f"model.layers.0.{module}" for module in parts.values())]
    assert sorted(checkpoint.tensors.names) == sorted(
        f"{module}.lora_{factor}.weight" for module in modules for factor in "AB"
    )
    assert checkpoint.config.fields["target_modules"] == [
        "v_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
        "up_proj",
        "lm_head",
    ]


def test_a_file_of_torch_save_is_read_too(tmp_path: Path) -> None:
    tensors = pair("attn.v_proj")
    torch_bytes.write(tmp_path / "adapter_model.pt", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "torchtune"
    read = checkpoint.tensors.read("model.layers.0.self_attn.v_proj.lora_B.weight")
    assert np.array_equal(read, tensors["layers.0.attn.v_proj.lora_b.weight"])


def test_rows_of_queries_and_of_their_magnitude_are_brought_back(tmp_path: Path) -> None:
    tensors = pair("attn.q_proj") | {
        "layers.0.attn.q_proj.magnitude": np.arange(8, dtype=np.float32)
    }
    checkpoint = opened(tmp_path, tensors, LLAMA)
    q = "model.layers.0.self_attn.q_proj"
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    assert checkpoint.config.fields["use_dora"] is True
    assert checkpoint.tensors.read(f"{q}.lora_magnitude_vector").tolist() == order
    stored = tensors["layers.0.attn.q_proj.lora_b.weight"]
    assert np.array_equal(checkpoint.tensors.read(f"{q}.lora_B.weight"), stored[order])
    stored = tensors["layers.0.attn.q_proj.lora_a.weight"]
    assert np.array_equal(checkpoint.tensors.read(f"{q}.lora_A.weight"), stored)


def test_rows_of_a_model_that_rotates_halves_stay(tmp_path: Path) -> None:
    tensors = pair("attn.k_proj")
    checkpoint = opened(tmp_path, tensors, LLAMA | {"model_type": "qwen2"})
    read = checkpoint.tensors.read("model.layers.0.self_attn.k_proj.lora_B.weight")
    assert np.array_equal(read, tensors["layers.0.attn.k_proj.lora_b.weight"])


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (None, UnsupportedAdapterError, "the number of heads, which is needed to bring them back"),
        ({"model_type": "phi3"}, UnsupportedAdapterError, "model_type is 'phi3', and in which"),
        ({}, UnsupportedAdapterError, "model_type is None, and in which order"),
        ({"model_type": "llama"}, AdapterError, "num_attention_heads is None"),
        (LLAMA | {"num_attention_heads": 3}, AdapterError, "has 8 rows, expected 3 heads"),
    ],
)
def test_rows_whose_order_is_not_known_are_refused(
    tmp_path: Path, model: Any, kind: type[AdapterError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        opened(tmp_path, pair("attn.q_proj"), model)
    assert caught.value.hint is not None
    assert "config.json" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attn.q_norm.lora_a.weight",
        "decoder.layers.0.attn.q_proj.lora_a.weight",
        "layers.0.attn.v_proj.lora_a.bias",
        "tok_embeddings.lora_a.weight",
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, name: str) -> None:
    tensors = pair("attn.v_proj") | {name: np.ones((2, 6), np.float32)}
    with pytest.raises(UnsupportedAdapterError, match="none of torchtune's that are kno") as caught:
        opened(tmp_path, tensors)
    assert caught.value.where.tensor == name


def test_the_configuration_must_give_the_scale(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"no adapter_config\.json") as caught:
        opened(tmp_path, pair("attn.v_proj"), config=None)
    assert "no known scale" in str(caught.value)
    for field in ("r", "lora_alpha"):
        config = {key: value for key, value in CONFIG.items() if key != field}
        with pytest.raises(UnsupportedAdapterError, match=f"{field} is not given"):
            opened(tmp_path, pair("attn.v_proj"), config=config)
