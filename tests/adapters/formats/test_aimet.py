from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.formats.formula import Array, setting

Q = "model.layers.0.q_proj"
PREFIX = "base_model.model."


def lora(
    module: str = Q, *, scale: Any = 2.0, adapter: str = "", sizes: tuple[int, int] = (6, 5)
) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    name = f".{adapter}" if adapter else ""
    tensors = {
        f"{PREFIX}{module}.lora_A{name}.weight": rng.normal(size=(2, sizes[0])),
        f"{PREFIX}{module}.lora_B{name}.weight": rng.normal(size=(sizes[1], 2)),
        f"{PREFIX}{module}.lora_scale{name}": np.asarray(scale),
    }
    return {key: value.astype(np.float32) for key, value in tensors.items()}


def opened(tmp_path: Path, tensors: dict[str, Array]) -> Checkpoint:
    path = tmp_path / "tone.safetensor"
    save_file(tensors, path)
    return open_checkpoint(path)


@pytest.mark.parametrize("adapter", ["", "code"])
def test_the_scale_is_the_tensor_beside_the_factors(tmp_path: Path, adapter: str) -> None:
    other = "model.layers.1.q_proj"
    tensors = lora(adapter=adapter) | lora(other, scale=0.5, adapter=adapter)
    checkpoint = opened(tmp_path, tensors)
    assert checkpoint.format == "aimet"
    assert setting(checkpoint, Q, "lora_alpha", "alpha_pattern") == 4.0
    assert setting(checkpoint, other, "lora_alpha", "alpha_pattern") == 1.0
    assert f"{Q}.lora_A.weight" in checkpoint.tensors.names


def test_factors_as_matmul_takes_them_are_turned(tmp_path: Path) -> None:
    square = "model.layers.0.o_proj"
    tensors = lora() | lora(square, sizes=(6, 6))
    turned = {n: v.T if v.ndim == 2 else v for n, v in tensors.items()}
    turned = {name: np.ascontiguousarray(value) for name, value in turned.items()}
    for case in (tensors, turned, lora(square, sizes=(6, 6))):
        view = opened(tmp_path, case).tensors
        for module in {name.partition(".lora_")[0] for name in view.names}:
            A = view.read(f"{module}.lora_A.weight")
            assert np.array_equal(A, tensors[f"{PREFIX}{module}.lora_A.weight"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lora(adapter="code") | lora(adapter="math"), "several adapters: 'code', 'math'"),
        (lora() | {"head.weight": np.ones(2, np.float32)}, "neither a LoRA factor nor its scale"),
        (lora() | {"x.lora_scale": np.ones(1, np.float32)}, "has a lora_scale but no factors"),
        (
            lora() | {f"{PREFIX}y.lora_A.weight": np.ones((2, 3), np.float32)},
            "the module has no lora_scale",
        ),
        (
            {k: v for k, v in lora().items() if "lora_A" not in k},
            "the module has no lora_A",
        ),
        (lora(scale=[1.0, 2.0]), r"shape \[2\], expected a single number"),
        (lora() | {f"{Q}.lora_A.weight": np.ones((2, 6), np.float32)}, "are the same of one modu"),
    ],
)
def test_files_that_do_not_settle_the_scale_are_refused(
    tmp_path: Path, tensors: dict[str, Array], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        opened(tmp_path, tensors)
    assert caught.value.where.tensor is not None


def test_a_file_without_scales_needs_pefts_configuration(tmp_path: Path) -> None:
    tensors = {name: v for name, v in lora(adapter="code").items() if "lora_scale" not in name}
    with pytest.raises(InputMissingError, match=r"has no adapter_config\.json") as caught:
        opened(tmp_path, tensors)
    assert "no known scale" in str(caught.value)
    text = '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}'
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    checkpoint = opened(tmp_path, tensors)
    assert checkpoint.format == "peft"
    assert f"{PREFIX}{Q}.lora_A.code.weight" in checkpoint.tensors.names


def test_a_lone_factor_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError):
        opened(tmp_path, lora() | {"lora_B": np.ones(1, np.float32)})
