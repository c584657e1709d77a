"""llama.cpp: a GGUF file of `general.type` adapter, as convert_lora_to_gguf.py writes it.

    blk.0.attn_q.weight.lora_a [r, in]     -> model.layers.0.self_attn.q_proj.lora_A.weight
    blk.0.attn_q.weight.lora_b [out, r]    -> model.layers.0.self_attn.q_proj.lora_B.weight
    token_embd.weight.lora_a   [V, r]      -> model.embed_tokens.lora_embedding_A, transposed
    adapter.lora.alpha                     -> lora_alpha; the scale is alpha / rows of A, or 1 for 0

For architecture `llama` the rows of q and k are in another order; see `rope_rows`. rsLoRA and
alpha_pattern are lost when a file is converted, which nothing in the file tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    reordered,
    same,
    transposed,
)
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.gguf_file import GgufFile
from lora_quant.adapters.formats.rope_rows import (
    Heads,
    halves_from_pairs,
    heads_from,
    is_rotated,
    read_model_config,
    unknown_heads,
)
from lora_quant.adapters.formats.synthesis import Strength, assumed_alpha, make_config
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, some

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.weight\.lora_(?P<factor>[ab])")
_ALPHA = "adapter.lora.alpha"
_ALORA = "adapter.alora.invocation_tokens"
_ARCHITECTURE = "general.architecture"
_PARTS: Mapping[str, str] = {
    "attn_k": "self_attn.k_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
}
_FUSED_PARTS: Mapping[str, str] = {
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.gate_up_proj",
}
_WHOLE: Mapping[str, str] = {"output": "lm_head", "token_embd": "model.embed_tokens"}
_ARCHITECTURES: Mapping[str, Mapping[str, str]] = {
    "gemma": _PARTS,
    "gemma2": _PARTS,
    "gemma3": _PARTS,
    "llama": _PARTS,
    "phi3": _FUSED_PARTS,
    "qwen2": _PARTS,
    "qwen3": _PARTS,
}
_PERMUTED = frozenset({"llama"})


@dataclass(frozen=True)
class GgufLora:
    """Told by the file's magic number alone."""

    name: ClassVar[str] = "gguf"
    signature: ClassVar[str] = "a GGUF file with tensors blk.N.attn_q.weight.lora_a"

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        return isinstance(found.tensors, GgufFile)

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        file = found.tensors
        if not isinstance(file, GgufFile):
            raise AdapterError("the file is not GGUF", where=Where(file=found.tensors.path))
        _check_fields(file)
        parts = _ARCHITECTURES[file.fields[_ARCHITECTURE]]
        heads = _heads(file) if file.fields[_ARCHITECTURE] in _PERMUTED else None
        view: dict[str, Derived] = {}
        ranks: dict[str, int] = {}
        for name in file.names:
            module, factor = _module(file, name, parts)
            where = Where(file=file.path, module=module, tensor=name)
            shape = file.info(name).shape
            if len(shape) != 2:
                raise UnsupportedAdapterError(
                    f"the tensor has shape {list(shape)}, expected two axes",
                    where=where,
                    hint="adapters of experts are not read from GGUF: use the PEFT files",
                )
            if module.endswith("embed_tokens"):
                made = (transposed if factor == "A" else same)(file, name)
                view[f"{module}.lora_embedding_{factor}"] = made
            elif factor == "B" and file.fields[_ARCHITECTURE] in _PERMUTED and is_rotated(module):
                count = None if heads is None else heads.of(module)
                if count is None:
                    raise unknown_heads(where, "llama.cpp")
                made = reordered(file, name, halves_from_pairs(shape[0], count, where))
                view[f"{module}.lora_B.weight"] = made
            else:
                made = same(file, name)
                view[f"{module}.lora_{factor}.weight"] = made
            if factor == "A":
                ranks[module] = made.shape[0]
        if not ranks:
            raise AdapterError(
                "the file holds no lora_a tensor",
                where=Where(file=file.path),
                hint="convert the adapter again with llama.cpp's convert_lora_to_gguf.py",
            )
        alpha = _alpha(file)
        strengths = {module: Strength(rank, alpha or rank) for module, rank in ranks.items()}
        notes = () if alpha else assumed_alpha(file.path, ranks, "llama.cpp")
        config = make_config(file.path, "LORA", strengths)
        return Reading(config, RenamedTensors(file, view), notes)


def _check_fields(file: GgufFile) -> None:
    for field, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if file.fields.get(field) != expected:
            raise UnsupportedAdapterError(
                f"{field} is {file.fields.get(field)!r}, expected {expected!r}",
                where=Where(file=file.path, field=field),
                hint="name a LoRA adapter that convert_lora_to_gguf.py wrote, not a model",
            )
    if _ALORA in file.fields:
        raise UnsupportedAdapterError(
            f"{_ALORA} is set: aLoRA is active only after its invocation tokens",
            where=Where(file=file.path, field=_ALORA),
            hint="use the PEFT files of the adapter, whose configuration says it in full",
        )
    architecture = file.fields.get(_ARCHITECTURE)
    if architecture not in _ARCHITECTURES:
        raise UnsupportedAdapterError(
            f"{_ARCHITECTURE} is {architecture!r}, whose names are not known here; expected one of "
            f"{', '.join(_ARCHITECTURES)}",
            where=Where(file=file.path, field=_ARCHITECTURE),
            hint="use the PEFT files that it was converted from",
        )


def _module(file: GgufFile, name: str, parts: Mapping[str, str]) -> tuple[str, str]:
    """Module path as transformers has it, and which factor the tensor is."""
    found = _NAME.fullmatch(name)
    if found is not None:
        layer, part = found["layer"], found["part"]
        path = _WHOLE.get(part) if layer is None else parts.get(part)
        if path is not None:
            module = path if layer is None else f"model.layers.{layer}.{path}"
            return module, found["factor"].upper()
    raise UnsupportedAdapterError(
        "the tensor is no LoRA factor of a module that is known here: expected "
        f"blk.N.PART.weight.lora_a or .lora_b with PART one of {some(sorted(parts), most=9)}",
        where=Where(file=file.path, tensor=name),
        hint="leave that module out of target_modules, or use the PEFT files",
    )


def _alpha(file: GgufFile) -> float:
    value = file.fields.get(_ALPHA, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise AdapterError(
            f"{_ALPHA} is {value!r}, expected a finite number",
            where=Where(file=file.path, field=_ALPHA),
            hint="convert the adapter again with llama.cpp's convert_lora_to_gguf.py",
        )
    return float(value)


def _heads(file: GgufFile) -> Heads | None:
    """From the file's own fields, which an adapter mostly lacks, or the base's configuration."""
    architecture = file.fields[_ARCHITECTURE]
    query = file.fields.get(f"{architecture}.attention.head_count")
    key = file.fields.get(f"{architecture}.attention.head_count_kv", query)
    if type(query) is int and type(key) is int and query > 0 and key > 0:
        return Heads(query, key)
    model = read_model_config(file.path.parent)
    return None if model is None else heads_from(*model)
