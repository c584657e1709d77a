"""torchtune: its own names, in a `.pt` or safetensors file, with an `adapter_config.json` beside.

    layers.0.attn.q_proj.lora_a.weight       -> model.layers.0.self_attn.q_proj.lora_A.weight
    layers.0.attn.output_proj.lora_b.weight  -> model.layers.0.self_attn.o_proj.lora_B.weight
    layers.0.mlp.w1 / w2 / w3                -> mlp.gate_proj / down_proj / up_proj
    output                                   -> lm_head

q and k of models with interleaved rotation have their rows in another order; see `rope_rows`. Which
models those are, and their heads, the base's `config.json` tells, which torchtune copies there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_quant.adapters.files.peft_config import CONFIG_FILE, PeftConfig
from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    TensorSource,
    reordered,
    same,
)
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.rope_rows import (
    MODEL_CONFIG,
    Heads,
    Rows,
    halves_from_pairs,
    heads_from,
    is_rotated,
    read_model_config,
    unknown_heads,
)
from lora_quant.errors import InputMissingError, UnsupportedAdapterError, Where

_NAME = re.compile(
    r"(?:layers\.(?P<layer>\d+)\.)?(?P<part>[\w.]+)\."
    r"(?P<leaf>lora_a\.weight|lora_b\.weight|magnitude)"
)
_LEAVES: Mapping[str, str] = {
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
_PARTS: Mapping[str, str] = {
    "attn.k_proj": "self_attn.k_proj",
    "attn.output_proj": "self_attn.o_proj",
    "attn.q_proj": "self_attn.q_proj",
    "attn.v_proj": "self_attn.v_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_MODULES: Mapping[str, str] = {
    "k_proj": "k_proj",
    "output": "lm_head",
    "output_proj": "o_proj",
    "q_proj": "q_proj",
    "v_proj": "v_proj",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
}
_INTERLEAVED = frozenset({"gemma", "gemma2", "llama", "mistral"})
_IN_ORDER = frozenset({"qwen2", "qwen3"})


@dataclass(frozen=True)
class Torchtune:
    """Told by names such as `layers.0.attn.q_proj.lora_a.weight`."""

    name: ClassVar[str] = "torchtune"
    signature: ClassVar[str] = "tensors layers.N.attn.q_proj.lora_a.weight"

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        return any(
            name.endswith((".lora_a.weight", ".lora_b.weight")) for name in found.tensors.names
        )

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        source = found.tensors
        if found.config_file is None or found.document is None:
            raise InputMissingError(
                f"the folder has no {CONFIG_FILE}",
                where=Where(file=source.path.parent),
                hint="torchtune writes it beside the adapter, and it holds the alpha; LoRA weights "
                "without it have no known scale",
            )
        undo = _row_order(source.path.parent)
        view: dict[str, Derived] = {}
        for name in source.names:
            module, leaf = _module(source, name)
            view[f"{module}.{_LEAVES[leaf]}"] = _derived(source, name, module, leaf, undo)
        config = _config(found.config_file, found.document, view)
        return Reading(config, RenamedTensors(source, view))


def _module(source: TensorSource, name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name)
    if found is not None:
        layer, part = found["layer"], found["part"]
        if layer is None and part == "output":
            return "lm_head", found["leaf"]
        if layer is not None and part in _PARTS:
            return f"model.layers.{layer}.{_PARTS[part]}", found["leaf"]
    raise UnsupportedAdapterError(
        "the tensor is none of torchtune's that are known here: expected layers.N.PART.lora_a."
        f"weight, .lora_b.weight or .magnitude with PART one of {', '.join(_PARTS)}",
        where=Where(file=source.path, tensor=name),
        hint="let torchtune write the adapter in PEFT's format (its HF checkpointer does)",
    )


def _derived(
    source: TensorSource,
    name: str,
    module: str,
    leaf: str,
    undo: Callable[[str, int, Where], Rows | None],
) -> Derived:
    if leaf == "lora_a.weight" or not is_rotated(module):
        return same(source, name)
    shape = source.info(name).shape
    where = Where(file=source.path, module=module, tensor=name)
    rows = undo(module, shape[0] if shape else 0, where)
    return same(source, name) if rows is None else reordered(source, name, rows)


def _row_order(folder: Path) -> Callable[[str, int, Where], Rows | None]:
    """Module, rows and place -> the order to bring its rows to; None to leave them."""
    model = read_model_config(folder)
    kind = None if model is None else model[1].get("model_type")
    heads: Heads | None = None
    if model is not None and kind in _INTERLEAVED:
        heads = heads_from(*model)

    def undo(module: str, out_features: int, where: Where) -> Rows | None:
        if model is None:
            raise unknown_heads(where, "torchtune")
        if kind in _IN_ORDER:
            return None
        count = None if heads is None else heads.of(module)
        if count is None:
            known = ", ".join(sorted(_INTERLEAVED | _IN_ORDER))
            raise UnsupportedAdapterError(
                f"model_type is {kind!r}, and in which order torchtune keeps the rows of its q and "
                f"k is not known here; expected one of {known}",
                where=Where(file=model[0], field="model_type", module=module),
                hint="let torchtune write the adapter in PEFT's format, or leave out q_proj and "
                f"k_proj; is {MODEL_CONFIG} the one of the base model?",
            )
        return halves_from_pairs(out_features, count, where)

    return undo


def _config(file: Path, document: Mapping[str, Any], view: Mapping[str, Derived]) -> PeftConfig:
    """torchtune's own fields, with modules by their transformers names."""
    fields: dict[str, Any] = {"peft_type": "LORA", **document}
    names = PeftConfig(file, "", document).names("target_modules")
    if isinstance(names, tuple):
        fields["target_modules"] = [_MODULES.get(name, name) for name in names]
    missing = [field for field in ("r", "lora_alpha") if fields.get(field) is None]
    if missing:
        raise UnsupportedAdapterError(
            f"{missing[0]} is not given, which the scale of the adapter needs",
            where=Where(file=file, field=missing[0]),
            hint="add the value of the training to the file",
        )
    if any(name.endswith("lora_magnitude_vector") for name in view):
        fields["use_dora"] = True
    return PeftConfig(file, str(fields["peft_type"]), fields)
