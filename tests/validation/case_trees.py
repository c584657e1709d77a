"""Trees that cases start from: a small flow of two modules, and packs that are built from it.

    flow/   model/base.onnx + base.data, adapters/{tone,legal}, attach_points.json,
            encodings/{base,tone,both}.encodings, quant_updatable/{tone,both}.txt, lora_config.yaml

Everything is seeded. The graph is as small as one can be with a rank, two adapters that share a
module, and one module that only one of them has: a pack of it is checked in some 20 ms.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lora_quant.api import build
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from tests.builders import GraphBuilder
from tests.runtime.kinds import pack_of
from tests.runtime.test_verify_prompts import prompt_pack

SIZE = 16
Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
RANKS = {"tone": 2, "legal": 4}
MODULES = {"tone": (Q, V), "legal": (Q,)}
USE_CASES = {"base": {}, "tone": {"tone": 1.0}, "both": {"tone": 1.0, "legal": 0.6}}

_CONFIG = """\
adapter:
- name: tone
  lora_config: adapters/tone
- name: legal
  lora_config: adapters/legal
attach_point_onnx_mapping: attach_points.json
use-case:
- name: base
  adapter_names: []
  adapter_alphas: []
  model_name: model/base.onnx
  quant_overrides: encodings/base.encodings
- name: tone
  adapter_names: [tone]
  adapter_alphas: [1.0]
  model_name: model/base.onnx
  quant_overrides: encodings/tone.encodings
  quant_updatable_tensors: quant_updatable/tone.txt
- name: both
  adapter_names: [tone, legal]
  adapter_alphas: [1.0, 0.6]
  model_name: model/base.onnx
  quant_overrides: encodings/both.encodings
  quant_updatable_tensors: quant_updatable/both.txt
"""


def path_of(module: str) -> str:
    """The module's path as the names of its nodes have it."""
    return "/" + module.replace("layers.0", "layers#0").replace(".", "/").replace("#", ".")


def write_flow(folder: Path) -> Path:
    """Write the flow; returns the folder."""
    for name in ("model", "encodings", "quant_updatable"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_model(folder / "model" / "base.onnx")
    for name in RANKS:
        _write_adapter(folder / "adapters" / name, name)
    mapping = {module: [f"{path_of(module)}/MatMul"] for module in (Q, V)}
    _write_json(folder / "attach_points.json", mapping)
    for name, strengths in USE_CASES.items():
        scale = 0.0001 * (1 + len(strengths))
        modules = [m for m in (Q, V) if any(m in MODULES[a] for a in strengths)]
        ranks = {m: sum(RANKS[a] for a in strengths if m in MODULES[a]) for m in modules}
        _write_json(folder / "encodings" / f"{name}.encodings", _encodings(ranks, scale))
        if strengths:
            names = sorted(name for module in modules for name in _branch_names(module))
            text = "".join(f"{name}\n" for name in names)
            (folder / "quant_updatable" / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "lora_config.yaml").write_text(_CONFIG, encoding="utf-8")
    return folder


def _write_model(path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 4, SIZE))
    parts = [
        graph.matmul(
            f"{path_of(module)}/MatMul",
            x,
            in_features=SIZE,
            out_features=SIZE,
            weight=f"{module}.weight",
        )
        for module in (Q, V)
    ]
    graph.output(graph.node("Add", parts, "/model/Add", "y"), (1, 4, SIZE))
    graph.save(path, external=True)


def _write_adapter(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    rank = RANKS[name]
    random = np.random.default_rng(rank)
    tensors = {}
    for module in MODULES[name]:
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"] = random.normal(size=(rank, SIZE)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = random.normal(size=(SIZE, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "base_model_name_or_path": "small",
        "bias": "none",
        "lora_alpha": 2 * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [module.rpartition(".")[2] for module in MODULES[name]],
        "task_type": None,
    }
    _write_json(folder / "adapter_config.json", config)


def _branch_names(module: str) -> list[str]:
    """Params, then activations, as AIMET's preparation of a use case names them."""
    path, stem = path_of(module), f"base_model.model.{module}"
    return [
        f"{stem}.lora_A.weight",
        f"{stem}.lora_B.weight",
        f"{path}/lora_A.0/MatMul_output_0",
        f"{path}/mul_scale/Mul_output_0",
        f"{path}/lora_B.0/MatMul_output_0",
    ]


def _encodings(ranks: dict[str, int], scale: float) -> dict[str, Any]:
    """1.0.0: 16 bits per tensor for activations, 8 bits per channel for weights.

    scale: that of the inner tensors of branches, another one for each use case.
    """
    activations, params = [_activation("x"), _activation("y")], []
    for module in (Q, V):
        activations.append(_activation(f"{path_of(module)}/MatMul_output_0"))
        params.append(_param(f"{module}.weight", SIZE))
        if module in ranks:
            a, b, *inner = _branch_names(module)
            params += [_param(a, ranks[module]), _param(b, SIZE)]
            activations += [_activation(name, scale) for name in inner]
            activations.append(_activation(f"{path_of(module)}/add_lora_to_res/Add_output_0"))
    return {
        "activation_encodings": activations,
        "excluded_layers": [],
        "param_encodings": params,
        "version": "1.0.0",
    }


def _activation(name: str, scale: float = 0.0005) -> dict[str, Any]:
    return {
        "bw": 16,
        "dtype": "INT",
        "enc_type": "PER_TENSOR",
        "is_sym": False,
        "name": name,
        "offset": [-32768],
        "scale": [scale],
    }


def _param(name: str, channels: int) -> dict[str, Any]:
    return {
        "bw": 8,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL",
        "is_sym": True,
        "name": name,
        "offset": [-128] * channels,
        "scale": [0.02] * channels,
    }


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _built(**options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        config = read_lora_config(write_flow(folder / "flow") / "lora_config.yaml")
        build(config, folder / "pack", BuildOptions(**options))
        return folder / "pack"

    return make


def _beside_base(folder: Path) -> Path:
    """A pack in the flow's folder, since it shares the data of the base."""
    config = read_lora_config(write_flow(folder) / "lora_config.yaml")
    build(config, folder / "pack", BuildOptions(beside_base=True))
    return folder


TREES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "flow": ("", lambda folder: write_flow(folder / "flow")),
    "pack": ("pack", _built()),
    "pack-onnxruntime": ("pack", _built(targets=("onnxruntime",))),
    "pack-qnn": ("pack", _built(targets=("qnn",))),
    "pack-beside-base": ("", _beside_base),
    "pack-gate": ("pack", lambda folder: pack_of(folder, ["lora_alora"])),
    "pack-prompt": ("pack", lambda folder: prompt_pack(folder, "prompt_tuning")),
    "pack-merged": (
        "pack",
        lambda folder: pack_of(folder, ["oft_default"], BuildOptions(merge="it")),
    ),
}
"""Name of a tree -> where a case has it, and what makes it in an empty folder."""
