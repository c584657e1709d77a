"""What a LORA checkpoint can ask for that plain low rank does not serve, and what to do instead.

Every field of `adapter_config.json` is used, known to have no effect on the result, refused with a
reason of its own, or, when PEFT adds it one day, refused as unknown unless it is not in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lora_quant.adapters.peft_config import PeftConfig
from lora_quant.adapters.routing import Role, RoutedKey
from lora_quant.errors import UnsupportedAdapterError, Where

_USED = frozenset(
    {
        "alpha_pattern",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)

_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",  # read by PEFT only while init_lora_weights names it
        "eva_config",
        "fan_in_fan_out",  # the order of the base's weight; A and B are always logical
        "inference_mode",
        "lora_dropout",  # the identity outside of training
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",  # read by PEFT only with use_qalora
        "revision",
        "runtime_config",
        "task_type",
    }
)

_PLAIN_INITS = frozenset({"eva", "gaussian", "mica", "orthogonal"})
_MOVING_INITS = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True)
class _Refusal:
    reason: str
    hint: str


_MERGE = "merge it into the base with PEFT (merge_and_unload) and export that, or train plain LoRA"
_PLAIN = "train plain LoRA instead"

_REFUSED: Mapping[str, _Refusal] = {
    "alora_invocation_tokens": _Refusal(
        "aLoRA is active only after its invocation tokens, which a fixed graph cannot tell", _PLAIN
    ),
    "arrow_config": _Refusal("Arrow chooses among adapters for every token", _PLAIN),
    "ensure_weight_tying": _Refusal(
        "it ties the adapters of the embedding and of the output layer",
        "leave both out of target_modules and set ensure_weight_tying to false",
    ),
    "kasa_config": _Refusal("KaSA removes singular vectors from the base's weight", _MERGE),
    "layer_replication": _Refusal(
        "the modules are counted in a stack of repeated layers",
        "merge it into the replicated model with PEFT, or train on the replicated model itself",
    ),
    "loftq_config": _Refusal(
        "LoftQ belongs to a base that it quantized itself",
        "export that base and save the adapter with loftq_config set to {}",
    ),
    "lora_bias": _Refusal(
        "the bias of B has no place in a branch", "train with lora_bias=False, or merge it"
    ),
    "modules_to_save": _Refusal(
        "whole modules of the base are replaced",
        "train without modules_to_save, or export a base that holds those modules",
    ),
    "monteclora_config": _Refusal("MonteCLoRA is not supported", _PLAIN),
    "target_parameters": _Refusal("parameters are adapted instead of modules", _MERGE),
    "trainable_token_indices": _Refusal("rows of the embedding are replaced", _MERGE),
    "use_bdlora": _Refusal("BD-LoRA stores its factors in block-diagonal form", _PLAIN),
    "use_dora": _Refusal("DoRA also scales the output of the base's weight", _MERGE),
    "use_qalora": _Refusal("QA-LoRA pools the input of A in groups", _PLAIN),
    "velora_config": _Refusal("VeLoRA is not supported", _PLAIN),
}

_PARAMETERS: Mapping[str, _Refusal] = {
    "lora_embedding_A": _Refusal("LoRA on an embedding", "leave embeddings out of target_modules"),
    "lora_embedding_B": _Refusal("LoRA on an embedding", "leave embeddings out of target_modules"),
    "lora_magnitude_vector": _Refusal("the magnitude of DoRA", _MERGE),
    "lora_diag": _Refusal("the diagonal of KaSA", _MERGE),
    "lora_E": _Refusal("the singular values of AdaLoRA", 'its config says "peft_type": "ADALORA"'),
    "ranknum": _Refusal("a counter of AdaLoRA", 'its config says "peft_type": "ADALORA"'),
    "lora_down": _Refusal("LoRA as kohya writes it", "convert it to PEFT's names and config"),
    "lora_up": _Refusal("LoRA as kohya writes it", "convert it to PEFT's names and config"),
}

PARAMETERS = frozenset({"lora_A", "lora_B", *_PARAMETERS})


def refuse_fields(config: PeftConfig) -> None:
    """Raise UnsupportedAdapterError for the first field that asks for more than plain LoRA."""
    _refuse_init(config)
    bias = config.fields.get("bias")
    if bias not in (None, "none"):
        raise UnsupportedAdapterError(
            f"bias is {bias!r}: biases of the base are replaced",
            where=config.where("bias"),
            hint='train with bias="none", or export a base that holds those biases',
        )
    for field in config.fields:
        if field in _USED | _WITHOUT_EFFECT | {"bias", "init_lora_weights"}:
            continue
        if config.is_neutral(field):
            continue
        refusal = _REFUSED.get(field)
        if refusal is not None:
            raise UnsupportedAdapterError(
                f"{field} is set: {refusal.reason}", where=config.where(field), hint=refusal.hint
            )
        raise UnsupportedAdapterError(
            f"{field} is {_short(config.fields[field])}, and what it does is not known here",
            where=config.where(field),
            hint="if it does not change the result, remove it or set it to null",
        )


def _refuse_init(config: PeftConfig) -> None:
    init = config.fields.get("init_lora_weights")
    if init is None or isinstance(init, bool):
        return
    where = config.where("init_lora_weights")
    name = init.lower() if isinstance(init, str) else ""
    if name in _PLAIN_INITS:
        return
    if name.startswith(_MOVING_INITS):
        raise UnsupportedAdapterError(
            f"init_lora_weights is {init!r}: it moved the base's weights before training, so the "
            "adapter does not fit the original base",
            where=where,
            hint="save it once more with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...), which makes it plain LoRA",
        )
    if name == "loftq":
        refusal = _REFUSED["loftq_config"]
        raise UnsupportedAdapterError(
            f"init_lora_weights is {init!r}: {refusal.reason}", where=where, hint=refusal.hint
        )
    raise UnsupportedAdapterError(
        f"init_lora_weights is {_short(init)}, expected true, false or one of "
        f"{', '.join(sorted(_PLAIN_INITS))}",
        where=where,
        hint="set it to true if the base was not changed by the initialization",
    )


def refuse_key(key: RoutedKey, file: Path) -> UnsupportedAdapterError:
    """The error for a tensor that is not the weight of an A or a B."""
    where = Where(file=file, tensor=key.key)
    if key.role is Role.SHARED:
        return UnsupportedAdapterError(
            "the tensor belongs to the whole model (a head, or a matrix that modules share), which "
            "LORA has no place for",
            where=where,
            hint="train without the head, or export a base that holds it",
        )
    if key.role is Role.REPLACEMENT:
        return _replacement(key, where)
    where = replace(where, module=key.module)
    parameter, _, tail = key.suffix.partition(".")
    refusal = _PARAMETERS.get(parameter)
    if refusal is not None:
        return UnsupportedAdapterError(
            f"the tensor is {refusal.reason}", where=where, hint=refusal.hint
        )
    if tail == "bias":
        return UnsupportedAdapterError(
            f"the tensor is the bias of {parameter}", where=where, hint=_REFUSED["lora_bias"].hint
        )
    return UnsupportedAdapterError(
        f"the tensor's name ends in {key.suffix}, expected {parameter}.weight",
        where=where,
        hint='AdaLoRA names its tensors so; its config says "peft_type": "ADALORA"',
    )


def refuse_nested(key: RoutedKey, file: Path) -> UnsupportedAdapterError:
    """The error for an adapter inside a wrapper of PEFT's (`base_layer` within the path)."""
    return UnsupportedAdapterError(
        "the tensor adapts a part of a wrapped module, as PEFT does for MultiheadAttention and for "
        "target_parameters",
        where=Where(file=file, module=key.module, tensor=key.key),
        hint=_MERGE,
    )


def _replacement(key: RoutedKey, where: Where) -> UnsupportedAdapterError:
    module, _, last = key.module.rpartition(".")
    owner, _, wrapped = module.rpartition(".")
    if wrapped == "base_layer" and last == "weight":
        return UnsupportedAdapterError(
            "the tensor is the whole weight of the base's module, beside its adapter",
            where=replace(where, module=owner),
            hint="save the adapter with save_pretrained(save_embedding_layers=False) if the base "
            "was not changed",
        )
    return UnsupportedAdapterError(
        "the tensor is not part of a LoRA pair; it would replace a tensor of the base",
        where=replace(where, module=module or None),
        hint="PEFT saves such tensors for modules_to_save, for trained biases and for embeddings; "
        "save with save_embedding_layers=False, or export a base that holds them",
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
