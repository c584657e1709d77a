"""MLX: `adapters.safetensors` and an `adapter_config.json` of its own, as mlx-lm writes them.

    model.layers.0.self_attn.q_proj.lora_a [in, r]    -> .lora_A.weight [r, in]
    model.layers.0.self_attn.q_proj.lora_b [r, out]   -> .lora_B.weight [out, r]
    model.layers.0.self_attn.q_proj.m      [out]      -> .lora_magnitude_vector (DoRA)
    lora_parameters.scale                             -> used as it is: lora_alpha = scale * rank

`num_layers` counts the layers from the end that were adapted, which the names are held against.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_quant.adapters.files.peft_config import CONFIG_FILE, PeftConfig
from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    TensorSource,
    same,
    transposed,
)
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.synthesis import Strength, make_config
from lora_quant.errors import (
    AdapterError,
    InputMissingError,
    UnsupportedAdapterError,
    Where,
)
from lora_quant.findings import Finding, Severity

_LEAVES = ("lora_a", "lora_b", "m")
_EMBEDDINGS = frozenset({"embed_tokens", "embeddings", "tok_embeddings", "word_embeddings", "wte"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_PARAMETERS = "lora_parameters"


@dataclass(frozen=True)
class Mlx:
    """Told by its configuration, or by names that end in `.lora_a` without `.weight`."""

    name: ClassVar[str] = "mlx"
    signature: ClassVar[str] = (
        f"tensors ending in .lora_a and .lora_b, with fine_tune_type or {_PARAMETERS} in "
        f"{CONFIG_FILE}"
    )

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        document = found.document or {}
        if not found.is_peft_config and not document.keys().isdisjoint(
            {_PARAMETERS, "fine_tune_type"}
        ):
            return True
        return any(
            name.endswith((".lora_a", ".lora_b")) and ".weight." not in name
            for name in found.tensors.names
        )

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        source = found.tensors
        if found.config_file is None or found.document is None:
            raise InputMissingError(
                f"the folder has no {CONFIG_FILE}",
                where=Where(file=source.path.parent),
                hint="mlx-lm writes it beside adapters.safetensors, and it holds the scale",
            )
        document = PeftConfig(found.config_file, "", found.document)
        kind = _fine_tune_type(document)
        parameters = document.fields.get(_PARAMETERS)
        if not isinstance(parameters, dict):
            raise AdapterError(
                f"{_PARAMETERS} is {type(parameters).__name__}, expected an object with rank and "
                "scale",
                where=document.where(_PARAMETERS),
                hint="save the adapter again with mlx-lm",
            )
        scale = _parameter(document, parameters, "scale")
        rank = int(_parameter(document, parameters, "rank", whole=True))
        modules, view = _view(source)
        findings = _check_layers(document, modules, source.path)
        strengths = {module: Strength(rank, scale * rank) for module in modules}
        fields: dict[str, Any] = {"use_dora": True} if kind == "dora" else {}
        config = make_config(found.config_file, "LORA", strengths, **fields)
        return Reading(config, RenamedTensors(source, view), findings)


def _fine_tune_type(document: PeftConfig) -> str:
    kind = document.fields.get("fine_tune_type", "lora")
    if kind == "full":
        raise UnsupportedAdapterError(
            "fine_tune_type is 'full': the weights of the base were trained, there is no adapter",
            where=document.where("fine_tune_type"),
            hint="export the trained model as the base, or train with --fine-tune-type lora",
        )
    if kind not in ("lora", "dora"):
        raise UnsupportedAdapterError(
            f"fine_tune_type is {kind!r}, expected 'lora' or 'dora'",
            where=document.where("fine_tune_type"),
            hint="train with --fine-tune-type lora or dora",
        )
    return str(kind)


def _parameter(
    document: PeftConfig, parameters: Mapping[str, Any], name: str, *, whole: bool = False
) -> float:
    if name not in parameters:
        raise AdapterError(
            f"{_PARAMETERS} has no {name}, which the scale of the adapter needs",
            where=document.where(f"{_PARAMETERS}.{name}"),
            hint="add the value of the training; older versions of mlx-lm took 20.0 for scale and "
            "8 for rank",
        )
    field = f"{_PARAMETERS}.{name}"
    flat = PeftConfig(document.file, "", {field: parameters[name]})
    return flat.positive(field, 8) if whole else flat.number(field, 20.0)


def _view(source: TensorSource) -> tuple[frozenset[str], dict[str, Derived]]:
    view: dict[str, Derived] = {}
    modules = set()
    for name in source.names:
        module, _, leaf = name.rpartition(".")
        where = Where(file=source.path, module=module or None, tensor=name)
        is_embedding = module.rpartition(".")[2] in _EMBEDDINGS
        if leaf not in _LEAVES or not module:
            raise UnsupportedAdapterError(
                f"the tensor's name ends in {leaf!r}, expected one of {', '.join(_LEAVES)}",
                where=where,
                hint="save the adapter's parameters only, as mlx-lm does",
            )
        if leaf == "m":
            if is_embedding:
                raise UnsupportedAdapterError(
                    "the tensor is DoRA on an embedding, which MLX scales by token and PEFT by "
                    "feature",
                    where=where,
                    hint="leave the embedding out of lora_parameters.keys",
                )
            view[f"{module}.lora_magnitude_vector"] = same(source, name)
            continue
        factor = leaf[-1].upper()
        suffix = f"lora_embedding_{factor}" if is_embedding else f"lora_{factor}.weight"
        view[f"{module}.{suffix}"] = transposed(source, name)
        modules.add(module)
    return frozenset(modules), view


def _check_layers(document: PeftConfig, modules: frozenset[str], file: Path) -> tuple[Finding, ...]:
    field = "num_layers" if "num_layers" in document.fields else "lora_layers"
    value = document.fields.get(field)
    if type(value) is not int or value < 1 or not modules:
        return ()
    layers = {int(found[1]) for module in modules if (found := _LAYER.search(module))}
    if len(layers) > value:
        raise AdapterError(
            f"the file has tensors in {len(layers)} layers, expected at most {value} from {field}",
            where=document.where(field),
            hint="the configuration is not the one that the weights were saved with",
        )
    if not layers or len(layers) == value:
        return ()
    return (
        Finding(
            rule="adapter/layers-without-tensors",
            severity=Severity.WARNING,
            message=f"{field} is {value}, but only {len(layers)} layers have tensors",
            where=Where(file=file),
            hint="check that the file is complete; the base is used unchanged elsewhere",
        ),
    )
