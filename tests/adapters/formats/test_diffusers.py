from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, ConfigError, InputMissingError, UnsupportedAdapterError
from tests.adapters.formats.formula import Array, setting

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"


def pair(down: str, up: str, rank: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(len(down))
    return {
        f"{down}.weight": rng.normal(size=(rank, 6)).astype(np.float32),
        f"{up}.weight": rng.normal(size=(5, rank)).astype(np.float32),
    }


def peft(module: str, rank: int = 2) -> dict[str, Array]:
    return pair(f"{module}.lora_A", f"{module}.lora_B", rank)


def opened(tmp_path: Path, tensors: dict[str, Array], metadata: Any = None) -> Checkpoint:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    texts = {"format": "pt"}
    if metadata is not None:
        texts["lora_adapter_metadata"] = (
            metadata if isinstance(metadata, str) else json.dumps(metadata)
        )
    save_file(tensors, path, texts)
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("down", "module"),
    [
        (f"{ATTENTION}.to_q.lora_A", f"{ATTENTION}.to_q"),
        (f"{ATTENTION}.processor.to_q_lora.down", f"{ATTENTION}.to_q"),
        (f"{ATTENTION}.processor.to_out_lora.down", f"{ATTENTION}.to_out.0"),
        (f"{ATTENTION}.to_k_lora.down", f"{ATTENTION}.to_k"),
        (f"{ATTENTION}.to_q.lora.down", f"{ATTENTION}.to_q"),
        (f"{ATTENTION}.to_out.0.lora.down", f"{ATTENTION}.to_out.0"),
        ("down_blocks.0.attn1.processor.to_v_lora.down", "down_blocks.0.attn1.to_v"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (
            "text_encoder_2.text_model.encoder.layers.0.self_attn.to_out_lora.down",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_A",
            "transformer.transformer_blocks.0.attn.to_q",
        ),
        ("diffusion_model.blocks.0.attn.q.lora_down", "diffusion_model.blocks.0.attn.q"),
    ],
)
def test_every_generation_of_names_is_brought_to_pefts(
    tmp_path: Path, down: str, module: str
) -> None:
    up = down.replace(".lora_A", ".lora_B") if down.endswith("_A") else down[:-4] + "up"
    tensors = pair(down, up)
    checkpoint = opened(tmp_path, tensors)
    assert checkpoint.format == "diffusers"
    assert checkpoint.config.fields["target_modules"] == [module]
    for factor, name in (("A", down), ("B", up)):
        read = checkpoint.tensors.read(f"{module}.lora_{factor}.weight")
        assert np.array_equal(read, tensors[f"{name}.weight"])


def test_without_any_alpha_the_scale_of_every_module_is_one(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, peft(f"{ATTENTION}.to_q", 2) | peft(f"{ATTENTION}.to_k", 4))
    for name, rank in (("to_q", 2), ("to_k", 4)):
        module = f"{ATTENTION}.{name}"
        assert setting(checkpoint, module, "r", "rank_pattern") == rank
        assert setting(checkpoint, module, "lora_alpha", "alpha_pattern") == rank
    (finding,) = checkpoint.findings
    assert finding.rule == "adapter/alpha-not-given"
    assert "2 modules have no alpha" in finding.message


def test_an_alpha_beside_a_module_is_its_own(tmp_path: Path) -> None:
    tensors = peft("diffusion_model.a.q", 2) | peft("diffusion_model.a.k", 2)
    alphas = {"diffusion_model.a.q.alpha": 1.0, "diffusion_model.a.k.alpha": 8.0}
    checkpoint = opened(
        tmp_path, tensors | {n: np.asarray(np.float32(a)) for n, a in alphas.items()}
    )
    for name, alpha in alphas.items():
        module = name.removesuffix(".alpha")
        assert setting(checkpoint, module, "lora_alpha", "alpha_pattern") == alpha
    assert checkpoint.findings == ()


def test_a_magnitude_makes_it_dora(tmp_path: Path) -> None:
    module = "transformer.transformer_blocks.0.attn.to_q"
    tensors = peft(module) | {f"{module}.lora_magnitude_vector": np.ones(5, np.float32)}
    assert opened(tmp_path, tensors).config.fields["use_dora"] is True


METADATA = {"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": ["to_q"]}


def test_the_metadata_holds_pefts_fields(tmp_path: Path) -> None:
    fields = {"unet.init_lora_weights": "pissa", "unet.alpha_pattern": {"to_k": 1}}
    checkpoint = opened(tmp_path, peft(f"{ATTENTION}.to_q"), METADATA | fields)
    assert dict(checkpoint.config.fields) == {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "init_lora_weights": "pissa",
        "alpha_pattern": {"to_k": 1},
        "target_modules": [f"{ATTENTION}.to_q"],
    }
    assert checkpoint.findings == ()


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ("{", ConfigError, "not JSON"),
        ([], AdapterError, "lora_adapter_metadata is a list, expected an object"),
        ({"unet.r": 2}, AdapterError, r"has no unet\.r and unet\.lora_alpha"),
        (
            METADATA | {"text_encoder.r": 2, "text_encoder.lora_alpha": 1},
            UnsupportedAdapterError,
            "the components text_encoder, unet differ in lora_alpha",
        ),
    ],
)
def test_metadata_that_does_not_settle_the_scale_is_refused(
    tmp_path: Path, metadata: Any, kind: type[Exception], message: str
) -> None:
    tensors = peft(f"{ATTENTION}.to_q")
    if isinstance(metadata, dict) and "text_encoder.r" in metadata:
        tensors |= peft("text_encoder.layers.0.q_proj")
    with pytest.raises(kind, match=message):
        opened(tmp_path, tensors, metadata)


def test_two_sources_of_alpha_are_refused(tmp_path: Path) -> None:
    alpha = {f"{ATTENTION}.to_q.alpha": np.asarray(np.float32(1))}
    with pytest.raises(AdapterError, match="alphas both in lora_adapter_metadata and as tensors"):
        opened(tmp_path, peft(f"{ATTENTION}.to_q") | alpha, METADATA)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"unet.conv_in.weight": np.ones(3, np.float32)}, "the tensor is no LoRA factor"),
        ({"unet.x.down.weight": np.ones((2, 3), np.float32)}, "the tensor is no LoRA factor"),
        ({"unet.x.alpha": np.asarray(np.float32(1))}, "the module has an alpha but no lora_A"),
        (
            pair(f"{ATTENTION}.processor.to_q_lora.down", f"{ATTENTION}.processor.to_q_lora.up"),
            r"two tensors are lora_A\.weight of one module",
        ),
        ({"unet.x.lora_A.weight": np.ones(3, np.float32)}, "expected two or more axes"),
    ],
)
def test_what_does_not_belong_is_refused(
    tmp_path: Path, more: dict[str, Array], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        opened(tmp_path, peft(f"{ATTENTION}.to_q") | more)
    assert caught.value.where.file == tmp_path / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    "module", ["transformer.h.0.attn.c_attn", "model.layers.0.self_attn.q_proj", "transformer.wte"]
)
def test_a_language_model_without_a_configuration_is_not_taken_for_one(
    tmp_path: Path, module: str
) -> None:
    with pytest.raises(InputMissingError, match="are of no format that does without it"):
        opened(tmp_path, peft(module))
