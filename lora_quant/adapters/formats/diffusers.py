"""diffusers and ComfyUI: dotted paths below a component, in PEFT's names or older ones.

    unet.mid_block.attn.to_q.lora_A.weight                    as it is
    unet.mid_block.attn.processor.to_q_lora.down.weight       unet.mid_block.attn.to_q.lora_A.weight
    text_encoder.enc.self_attn.to_out_lora.up.weight          ....self_attn.out_proj.lora_B.weight
    text_encoder.enc.q_proj.lora_linear_layer.down.weight     ....q_proj.lora_A.weight
    diffusion_model.blocks.0.attn.lora_up.weight              ....attn.lora_B.weight

alpha comes from the file's metadata (`lora_adapter_metadata`: PEFT's fields for each component),
else from `<module>.alpha`; where there is neither the scale is 1, as diffusers loads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    TensorSource,
    read_number,
    same,
)
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.synthesis import Strength, assumed_alpha, make_config
from lora_quant.config.documents import parse_json
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

METADATA = "lora_adapter_metadata"
_COMPONENT = re.compile(
    r"(?:unet|text_encoder(?:_\d)?|transformer(?:_\d)?|diffusion_model|prior|controlnet)\."
)
# GPT-2 and its kin have a level `transformer` too, and no alpha that could be assumed for them
_LANGUAGE_MODEL = re.compile(r"transformer\.(?:h|wte|wpe|blocks|word_embeddings)\.")
_FACTOR = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])|(?P<attention>_lora)?(?:\.lora|\.lora_linear_layer)?\.(?P<half>down|up)"
    r"|\.lora_(?P<kohya>down|up))\.weight"
)
_OLD = (".down.weight", ".up.weight")
_MAGNITUDE = ".lora_magnitude_vector"
_FACTORS = {"A": "A", "B": "B", "down": "A", "up": "B"}
_ENCODER_PARTS = {"to_k": "k_proj", "to_out": "out_proj", "to_q": "q_proj", "to_v": "v_proj"}


@dataclass(frozen=True)
class Diffusers:
    """Told by its metadata, by its older names, or by a component before PEFT's names."""

    name: ClassVar[str] = "diffusers"
    signature: ClassVar[str] = (
        f"tensors unet.PATH.lora_A.weight or PATH.processor.to_q_lora.down.weight, or {METADATA} "
        "in the metadata"
    )

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        if METADATA in found.tensors.metadata:
            return True
        if any(_is_old(name) for name in found.tensors.names):
            return True
        return not found.is_peft_config and any(
            _COMPONENT.match(name) and _FACTOR.fullmatch(name) and not _LANGUAGE_MODEL.match(name)
            for name in found.tensors.names
        )

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        source = found.tensors
        view: dict[str, Derived] = {}
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        for name in source.names:
            if name.endswith(".alpha"):
                alphas[_module(name.removesuffix(".alpha"), None)] = read_number(source, name)
                continue
            module, parameter = _parameter(source, name)
            key = f"{module}.{parameter}"
            if key in view:
                raise AdapterError(
                    f"two tensors are {parameter} of one module: {view[key].sources[0]!r} and "
                    f"{name!r}",
                    where=Where(file=source.path, module=module, tensor=name),
                    hint="save each adapter to a file of its own, in one format",
                )
            view[key] = same(source, name)
            if parameter == "lora_A.weight":
                ranks[module] = _rank(source, name, module)
        lone = sorted(alphas.keys() - ranks.keys())
        if lone or not ranks:
            raise AdapterError(
                "the module has an alpha but no lora_A" if lone else "the file holds no lora_A",
                where=Where(file=source.path, module=lone[0] if lone else None),
                hint="the file is incomplete; save or download it again",
            )
        dora = any(key.endswith(_MAGNITUDE) for key in view)
        fields: dict[str, Any] = {"use_dora": True} if dora else {}
        tensors = RenamedTensors(source, view)
        if METADATA in source.metadata:
            if alphas:
                raise AdapterError(
                    f"the file has alphas both in {METADATA} and as tensors: which are meant?",
                    where=Where(file=source.path, field=METADATA),
                    hint="remove one of them",
                )
            return Reading(_from_metadata(source, ranks, fields), tensors)
        strengths = {m: Strength(rank, alphas.get(m) or rank) for m, rank in ranks.items()}
        assumed = [module for module in ranks if not alphas.get(module)]
        config = make_config(source.path, "LORA", strengths, **fields)
        return Reading(config, tensors, assumed_alpha(source.path, assumed, "diffusers"))


def _is_old(name: str) -> bool:
    return name.endswith(_OLD) and any(
        mark in name for mark in ("_lora.", ".lora.", ".lora_linear_layer.")
    )


def _parameter(source: TensorSource, name: str) -> tuple[str, str]:
    """Module and PEFT's parameter name of one tensor."""
    if name.endswith(_MAGNITUDE):
        return _module(name.removesuffix(_MAGNITUDE), None), _MAGNITUDE[1:]
    found = _FACTOR.fullmatch(name)
    if found is None or (found["half"] and not _is_old(name)):
        raise UnsupportedAdapterError(
            "the tensor is no LoRA factor: expected a name that ends in .lora_A.weight, "
            ".lora_down.weight or _lora.down.weight",
            where=Where(file=source.path, tensor=name),
            hint="save the LoRA weights alone, without embeddings, norms or biases",
        )
    factor = _FACTORS[found["peft"] or found["half"] or found["kohya"]]
    return _module(found["module"], found["attention"]), f"lora_{factor}.weight"


def _module(path: str, attention: str | None) -> str:
    """The module's own path: wrappers that only old versions had are not part of it."""
    levels = [level for level in path.split(".") if level != "processor"]
    if attention is None:
        return ".".join(levels)
    last = levels[-1]
    if levels[0].startswith("text_encoder"):
        levels[-1] = _ENCODER_PARTS.get(last, last)
    elif last == "to_out":
        levels.append("0")
    return ".".join(levels)


def _rank(source: TensorSource, name: str, module: str) -> int:
    shape = source.info(name).shape
    if len(shape) < 2 or 0 in shape:
        raise AdapterError(
            f"the tensor has shape {list(shape)}, expected two or more axes without a zero",
            where=Where(file=source.path, module=module, tensor=name),
            hint="the file is damaged; save or download it again",
        )
    return shape[0]


def _from_metadata(
    source: TensorSource, ranks: Mapping[str, int], own: Mapping[str, Any]
) -> PeftConfig:
    """PEFT's fields of the one component, or those that all components agree on."""
    where = Where(file=source.path, field=METADATA)
    document = parse_json(source.metadata[METADATA], source=source.path)
    if not isinstance(document, dict):
        raise AdapterError(
            f"{METADATA} is a {type(document).__name__}, expected an object",
            where=where,
            hint="save the adapter again with diffusers",
        )
    components = sorted({module.partition(".")[0] for module in ranks})
    merged: dict[str, Any] = {}
    for component in components:
        prefix = f"{component}."
        fields = {
            key.removeprefix(prefix): value
            for key, value in document.items()
            if key.startswith(prefix) and not key.endswith(".target_modules")
        }
        if "r" not in fields or "lora_alpha" not in fields:
            raise AdapterError(
                f"{METADATA} has no {prefix}r and {prefix}lora_alpha, which the scale needs",
                where=where,
                hint="save the adapter again with diffusers, or remove the metadata",
            )
        if merged and fields != merged:
            differing = sorted(k for k in fields | merged if fields.get(k) != merged.get(k))
            raise UnsupportedAdapterError(
                f"the components {', '.join(components)} differ in {', '.join(differing)}",
                where=where,
                hint="save each component's adapter to a file of its own",
            )
        merged = fields
    made = {"peft_type": "LORA", **merged, **own, "target_modules": sorted(ranks)}
    return PeftConfig(source.path, str(made["peft_type"]), MappingProxyType(made))
