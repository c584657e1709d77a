"""PEFT-like LoRA checkpoints with random weights, written tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from shape import Shape

_WIDTH = {"F32": 4, "BF16": 2}


def write_adapter(folder: Path, shape: Shape, rank: int, dtype: str, seed: int) -> None:
    """A folder as PEFT saves it: all projections, names in alphabetical order."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = sorted({linear.module.rpartition(".")[2] for linear in shape.projections(0)})
    config = {
        "base_model_name_or_path": "benchmark",
        "bias": "none",
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    tensors: dict[str, tuple[int, int]] = {}
    for linear in shape.all_projections():
        tensors[f"base_model.model.{linear.module}.lora_A.weight"] = (rank, linear.in_features)
        tensors[f"base_model.model.{linear.module}.lora_B.weight"] = (linear.out_features, rank)
    ordered = sorted(tensors.items())
    rng = np.random.default_rng(seed)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(_header(ordered, dtype))
        for name, size in ordered:
            spread = size[1] ** -0.5 if name.endswith("lora_A.weight") else 0.01
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(spread)
            file.write(_stored(values, dtype))


def _header(tensors: list[tuple[str, tuple[int, int]]], dtype: str) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors:
        end = offset + size[0] * size[1] * _WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored(values: np.ndarray, dtype: str) -> bytes:
    """The bytes of a tensor; bfloat16 is the upper half of float32."""
    if dtype == "F32":
        return values.tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
