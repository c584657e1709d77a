"""GGUF adapters; the order of rows is held against a file of the gguf package elsewhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.formats import gguf_bytes
from tests.adapters.formats.formula import Array


def pair(part: str, out: int = 8, rank: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(out)
    return {
        f"{part}.weight.lora_a": rng.normal(size=(rank, 6)).astype(np.float32),
        f"{part}.weight.lora_b": rng.normal(size=(out, rank)).astype(np.float32),
    }


def opened(tmp_path: Path, tensors: dict[str, Array], **fields: Any) -> Checkpoint:
    return open_checkpoint(gguf_bytes.write(tmp_path / "adapter.gguf", tensors, **fields))


def test_names_are_those_of_transformers(tmp_path: Path) -> None:
    parts = {
        "blk.1.attn_q": "model.layers.1.self_attn.q_proj",
        "blk.1.attn_k": "model.layers.1.self_attn.k_proj",
        "blk.1.attn_v": "model.layers.1.self_attn.v_proj",
        "blk.1.attn_output": "model.layers.1.self_attn.o_proj",
        "blk.1.ffn_gate": "model.layers.1.mlp.gate_proj",
        "blk.1.ffn_up": "model.layers.1.mlp.up_proj",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
        "output": "lm_head",
    }
    tensors: dict[str, Array] = {}
    for part in parts:
        tensors |= pair(part)
    checkpoint = opened(tmp_path, tensors)
    assert checkpoint.format == "gguf"
    assert checkpoint.config.fields["target_modules"] == sorted(parts.values())
    for part, module in parts.items():
        for factor in "AB":
            read = checkpoint.tensors.read(f"{module}.lora_{factor}.weight")
            assert np.array_equal(read, tensors[f"{part}.weight.lora_{factor.lower()}"])


def test_fused_parts_of_phi3_have_their_own_names(tmp_path: Path) -> None:
    tensors = pair("blk.0.attn_qkv") | pair("blk.0.ffn_up")
    checkpoint = opened(tmp_path, tensors, general__architecture="phi3")
    assert checkpoint.config.fields["target_modules"] == [
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.self_attn.qkv_proj",
    ]


def test_alpha_is_shared_and_ranks_are_those_of_the_tensors(tmp_path: Path) -> None:
    tensors = pair("blk.0.attn_v", rank=2) | pair("blk.0.ffn_up", rank=4)
    fields = opened(tmp_path, tensors, adapter__lora__alpha=6.0).config.fields
    assert fields["lora_alpha"] == 6.0
    assert {fields["r"], *fields["rank_pattern"].values()} == {2, 4}
    assert fields["alpha_pattern"] == {}


@pytest.mark.parametrize("alpha", [0.0, None])
def test_no_alpha_means_a_scale_of_one_and_is_noted(tmp_path: Path, alpha: float | None) -> None:
    checkpoint = opened(tmp_path, pair("blk.0.attn_v"), adapter__lora__alpha=alpha)
    assert checkpoint.config.fields["lora_alpha"] == 2
    (finding,) = checkpoint.findings
    assert "their scale is 1, as llama.cpp does" in finding.message


@pytest.mark.parametrize("source", ["fields", "config.json"])
def test_rows_of_queries_are_brought_back(tmp_path: Path, source: str) -> None:
    tensors = pair("blk.0.attn_q")
    fields: dict[str, Any] = {"general__architecture": "llama"}
    if source == "fields":
        fields |= {"llama__attention__head_count": 2, "llama__attention__head_count_kv": 1}
    else:
        text = json.dumps({"num_attention_heads": 2})
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    checkpoint = opened(tmp_path, tensors, **fields)
    read = checkpoint.tensors.read("model.layers.0.self_attn.q_proj.lora_B.weight")
    stored = tensors["blk.0.attn_q.weight.lora_b"]
    assert np.array_equal(read, stored[[0, 2, 1, 3, 4, 6, 5, 7]])


def test_without_the_number_of_heads_only_q_and_k_are_refused(tmp_path: Path) -> None:
    llama = {"general__architecture": "llama"}
    assert opened(tmp_path, pair("blk.0.attn_v"), **llama).format == "gguf"
    with pytest.raises(UnsupportedAdapterError, match=r"in the order of llama\.cpp, and") as caught:
        opened(tmp_path, pair("blk.0.attn_k"), **llama)
    assert caught.value.where.tensor == "blk.0.attn_k.weight.lora_b"
    assert caught.value.where.module == "model.layers.0.self_attn.k_proj"
    assert caught.value.hint == "copy the base model's config.json beside the adapter"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general__type": "model"}, "general.type is 'model', expected 'adapter'"),
        ({"general__type": None}, "general.type is None, expected 'adapter'"),
        ({"adapter__type": "control_vector"}, "adapter.type is 'control_vector', expected 'lora'"),
        (
            {"general__architecture": "mamba"},
            "general.architecture is 'mamba', whose names are not known here; expected one of gem",
        ),
        (
            {"adapter__alora__invocation_tokens": struct.pack("<IIQI", 9, 4, 1, 7)},
            "aLoRA is active only after its invocation tokens",
        ),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        opened(tmp_path, pair("blk.0.attn_v"), **fields)
    assert caught.value.where.field is not None


@pytest.mark.parametrize("alpha", ["8", struct.pack("<If", 6, float("nan")), b"\7\0\0\0\1"])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(AdapterError, match=r"adapter\.lora\.alpha is .*, expected a finite"):
        opened(tmp_path, pair("blk.0.attn_v"), adapter__lora__alpha=alpha)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_norm.weight", (6,), "no LoRA factor of a module that is known here"),
        ("blk.0.ffn_up_exps.weight.lora_a", (2, 6), "no LoRA factor of a module that is known"),
        ("blk.0.attn_v.weight.lora_c", (2, 6), "no LoRA factor of a module that is known here"),
        ("blk.0.attn_k.weight.lora_a", (4, 2, 6), r"shape \[4, 2, 6\], expected two axes"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        opened(tmp_path, pair("blk.0.attn_v") | {name: np.ones(shape, np.float32)})
    assert caught.value.where.tensor == name
