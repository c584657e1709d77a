"""Small checkpoints, built in code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.base_modules import BaseModules, BaseSizes, Tile
from lora_quant.adapters.kinds.lora import LoraRule
from lora_quant.adapters.lowered import Lowered

Array = NDArray[Any]
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"
V0 = "model.layers.0.self_attn.v_proj"
Q1 = "model.layers.1.self_attn.q_proj"
RULES = {"LORA": LoraRule()}


def pair(
    module: str,
    *,
    rank: int = 4,
    features: tuple[int, int] = (6, 5),
    kernel: tuple[int, ...] = (),
    dtype: Any = np.float32,
    prefix: str = PREFIX,
    name: str = "",
) -> dict[str, Array]:
    """A `[rank, in, *kernel]` and B `[out, rank, 1...]` of one module under PEFT's names."""
    rng = np.random.default_rng(len(module) + rank)
    n_in, n_out = features
    return {
        f"{prefix}{module}.lora_A.{name}weight": rng.normal(size=(rank, n_in, *kernel)).astype(
            dtype
        ),
        f"{prefix}{module}.lora_B.{name}weight": rng.normal(
            size=(n_out, rank, *(1 for _ in kernel))
        ).astype(dtype),
    }


class ArrayBase:
    """Implements BaseModules over weights `[out, in, *kernel]`, in tiles of 2 rows, 3 columns."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        biases: Mapping[str, Array] | None = None,
        groups: int = 1,
    ) -> None:
        self._weights = weights
        self._biases = biases or {}
        self._groups = groups

    def sizes(self, module: str) -> BaseSizes:
        out, width, *kernel = self._weights[module].shape
        return BaseSizes(width * self._groups, out, tuple(kernel), self._groups)

    def tiles(self, module: str) -> Iterator[Tile]:
        weight = self._weights[module]
        for row in range(0, weight.shape[0], 2):
            for column in range(0, weight.shape[1], 3):
                rows = slice(row, min(row + 2, weight.shape[0]))
                columns = slice(column, min(column + 3, weight.shape[1]))
                yield Tile(rows, columns, weight[rows, columns])

    def bias(self, module: str) -> NDArray[np.float64]:
        zeros = np.zeros(len(self._weights[module]))
        return np.asarray(self._biases.get(module, zeros), np.float64)

    def order(self) -> tuple[str, ...]:
        return tuple(self._weights)


def low_rank(adapter: Adapter, module: str, base: BaseModules | None = None) -> Lowered:
    """One module of a kind that has a low rank."""
    lowered = adapter.lower(module, base)
    assert isinstance(lowered, Lowered)
    return lowered


def config(**fields: Any) -> dict[str, Any]:
    """A LORA configuration as PEFT writes it, with some fields replaced."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["q_proj"],
        "use_dora": False,
        "use_rslora": False,
    } | fields


def write(folder: Path, tensors: Mapping[str, Array], **fields: Any) -> Path:
    """A PEFT folder with these tensors and configuration fields."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config(**fields)), encoding="utf-8")
    return folder


def load(folder: Path, tensors: Mapping[str, Array], **fields: Any) -> Adapter:
    """Write a PEFT folder and load it as adapter `tone`."""
    return load_adapter("tone", write(folder, tensors, **fields), RULES)
