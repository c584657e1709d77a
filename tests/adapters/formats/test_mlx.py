"""MLX adapters; their numbers are held in test_against_libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.formats.formula import Array

Q = "model.layers.3.self_attn.q_proj"


def pair(module: str = Q, rank: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(rank)
    return {
        f"{module}.lora_a": rng.normal(size=(6, rank)).astype(np.float32),
        f"{module}.lora_b": rng.normal(size=(rank, 5)).astype(np.float32),
    }


def opened(
    tmp_path: Path, tensors: dict[str, Array], config: Any = None, **more: Any
) -> Checkpoint:
    save_file(tensors, tmp_path / "adapters.safetensors")
    document = {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
        "num_layers": 1,
    } | more
    text = json.dumps(document if config is None else config)
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize("named", ["", "adapters.safetensors", "adapter_config.json"])
def test_factors_are_transposed_and_the_scale_is_taken_as_it_is(tmp_path: Path, named: str) -> None:
    tensors = pair()
    opened(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path / named)
    assert checkpoint.format == "mlx"
    assert checkpoint.config.fields["r"] == 2
    assert checkpoint.config.fields["lora_alpha"] == 40.0
    assert checkpoint.config.file == tmp_path / "adapter_config.json"
    for factor in "AB":
        read = checkpoint.tensors.read(f"{Q}.lora_{factor}.weight")
        assert np.array_equal(read, tensors[f"{Q}.lora_{factor.lower()}"].T)


def test_the_magnitude_of_dora_is_called_m(tmp_path: Path) -> None:
    tensors = pair() | {f"{Q}.m": np.ones(5, np.float32)}
    checkpoint = opened(tmp_path, tensors, fine_tune_type="dora")
    assert checkpoint.config.fields["use_dora"] is True
    assert f"{Q}.lora_magnitude_vector" in checkpoint.tensors.names
    embedding = pair("model.embed_tokens") | {"model.embed_tokens.m": np.ones(6, np.float32)}
    with pytest.raises(UnsupportedAdapterError, match="DoRA on an embedding"):
        opened(tmp_path, embedding, fine_tune_type="dora")


def test_a_configuration_without_a_fine_tune_type_is_lora(tmp_path: Path) -> None:
    config = {"lora_layers": 1, "lora_parameters": {"rank": 2, "scale": 10}}
    assert opened(tmp_path, pair(), config).config.fields["lora_alpha"] == 20.0


@pytest.mark.parametrize(
    ("more", "kind", "message", "field"),
    [
        (
            {"fine_tune_type": "full"},
            UnsupportedAdapterError,
            "the weights of the base were trained, there is no adapter",
            "fine_tune_type",
        ),
        (
            {"fine_tune_type": "ia3"},
            UnsupportedAdapterError,
            "fine_tune_type is 'ia3', expected 'lora' or 'dora'",
            "fine_tune_type",
        ),
        (
            {"lora_parameters": {"rank": 2}},
            AdapterError,
            "lora_parameters has no scale, which the scale of the adapter needs",
            "lora_parameters.scale",
        ),
        (
            {"lora_parameters": {"scale": 2}},
            AdapterError,
            "lora_parameters has no rank",
            "lora_parameters.rank",
        ),
        (
            {"lora_parameters": {"rank": 0, "scale": 2}},
            AdapterError,
            "lora_parameters.rank is 0, expected a whole number of at least 1",
            "lora_parameters.rank",
        ),
        (
            {"lora_parameters": {"rank": 2, "scale": "20"}},
            AdapterError,
            "lora_parameters.scale is '20', expected a finite number",
            "lora_parameters.scale",
        ),
        (
            {"lora_parameters": None},
            AdapterError,
            "lora_parameters is NoneType, expected an object",
            "lora_parameters",
        ),
    ],
)
def test_a_configuration_that_does_not_settle_the_scale_is_refused(
    tmp_path: Path, more: dict[str, Any], kind: type[AdapterError], message: str, field: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        opened(tmp_path, pair(), **more)
    assert caught.value.where.field == field


def test_layers_are_held_against_their_number(tmp_path: Path) -> None:
    other = pair("model.layers.2.self_attn.q_proj")
    with pytest.raises(AdapterError, match="in 2 layers, expected at most 1 from num_layers"):
        opened(tmp_path, pair() | other)
    (finding,) = opened(tmp_path, pair(), num_layers=4).findings
    assert finding.message == "num_layers is 4, but only 1 layers have tensors"
    assert opened(tmp_path, pair() | other, num_layers=-1).findings == ()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.weight": np.ones((2, 2), np.float32)}, "name ends in 'weight', expected one of"),
        ({f"{Q}.lora_a": np.ones((4, 2, 6), np.float32)}, r"shape \[4, 2, 6\], expected two axes"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict[str, Array], message: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        opened(tmp_path, tensors)
    assert caught.value.where.tensor in tensors


def test_weights_without_their_configuration_have_no_known_scale(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "adapters.safetensors")
    with pytest.raises(InputMissingError, match=r"no adapter_config\.json") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is not None
    assert "it holds the scale" in caught.value.hint
