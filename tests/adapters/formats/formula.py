"""What an adapter in PEFT's vocabulary does to a weight, by its formula, in float64."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.checkpoint import Checkpoint

Array = NDArray[Any]


def setting(checkpoint: Checkpoint, module: str, field: str, pattern_field: str) -> float:
    """The value of a field for one module, as PEFT's get_pattern_key finds it."""
    fields = checkpoint.config.fields
    for key, value in fields.get(pattern_field, {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return float(fields[field])


def merged(checkpoint: Checkpoint, module: str, W: Array, b: Array | None) -> tuple[Array, Any]:
    """Weight and bias of the base with the adapter in it."""
    prefix = f"{module}."
    tensors = {
        name.removeprefix(prefix): checkpoint.tensors.read(name).astype(np.float64)
        for name in checkpoint.tensors.names
        if name.startswith(prefix)
    }
    W = W.astype(np.float64)
    kind = checkpoint.config.peft_type
    if kind == "IA3":
        return _ia3(checkpoint, module, tensors["ia3_l"], W, b)
    rank = setting(checkpoint, module, "r", "rank_pattern")
    alpha_field = "lora_alpha" if kind == "LORA" else "alpha"
    scale = setting(checkpoint, module, alpha_field, "alpha_pattern") / rank
    changed = W + scale * {"LORA": _lora, "LOHA": _loha, "LOKR": _lokr}[kind](tensors, W.shape)
    if "lora_magnitude_vector" in tensors:
        norm = np.sqrt((changed.reshape(len(W), -1) ** 2).sum(1))
        norm += checkpoint.config.fields.get("lora_quant_norm_eps", 0.0)
        g = tensors["lora_magnitude_vector"].reshape(-1) / norm
        changed = changed * g.reshape(-1, *(1 for _ in W.shape[1:]))
    return changed, b


def _lora(t: dict[str, Array], shape: tuple[int, ...]) -> Array:
    if "lora_embedding_A" in t:
        return (t["lora_embedding_B"] @ t["lora_embedding_A"]).T
    A, B = t["lora_A.weight"], t["lora_B.weight"]
    return (B.reshape(len(B), -1) @ A.reshape(len(A), -1)).reshape(shape)


def _loha(t: dict[str, Array], shape: tuple[int, ...]) -> Array:
    halves = []
    for number in "12":
        a, b = t[f"hada_w{number}_a"], t[f"hada_w{number}_b"]
        core = t.get(f"hada_t{number}")
        if core is None:
            halves.append((a @ b).reshape(shape))
        else:
            halves.append(np.einsum("ij...,ip,jr->pr...", core, a, b))
    return np.asarray(halves[0] * halves[1])


def _lokr(t: dict[str, Array], shape: tuple[int, ...]) -> Array:
    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    w2 = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    outer = shape[0] // len(w1), shape[1] // w1.shape[1]
    w2 = w2.reshape(*outer, -1)
    return np.asarray(np.einsum("ac,bdk->abcdk", w1, w2).reshape(shape))


def _ia3(
    checkpoint: Checkpoint, module: str, scale: Array, W: Array, b: Array | None
) -> tuple[Array, Any]:
    fields = checkpoint.config.fields
    axes = tuple(1 for _ in W.shape[2:])
    if fields["feedforward_modules"] and re.fullmatch(fields["feedforward_modules"], module):
        return W * scale.reshape(1, -1, *axes), b
    scales_bias = fields.get("lora_quant_ia3_bias") != "unscaled"
    bias = b * scale.reshape(-1) if scales_bias and b is not None else b
    return W * scale.reshape(-1, 1, *axes), bias
