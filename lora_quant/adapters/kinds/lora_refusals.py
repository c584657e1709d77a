"""What a LORA checkpoint can ask for that is refused, and what to do instead.

Every field of `adapter_config.json` is used, known to have no effect on the result, refused with a
reason of its own, or, when PEFT adds it one day, refused as unknown unless it is not in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.fields import Refusal
from lora_quant.errors import UnsupportedAdapterError, Where, short

USED = frozenset(
    {
        "alora_invocation_tokens",
        "ensure_weight_tying",
        "init_lora_weights",
        "kasa_config",
        "layer_replication",
        "lora_bias",
        "lora_quant_norm_eps",
        "monteclora_config",
        "qalora_group_size",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "use_rslora",
        "velora_config",
    }
)

NEUTRAL = frozenset(
    {
        "corda_config",  # read by PEFT only while init_lora_weights names it
        "eva_config",
        "fan_in_fan_out",  # the order of the base's weight; A and B are always logical
        "lora_dropout",  # the identity outside of training
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
    }
)

_CONVERT = (
    "save it once more with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), "
    "which makes it plain LoRA"
)
_PLAIN = "train plain LoRA instead"
_LOFTQ = Refusal(
    "LoftQ belongs to a base that it quantized itself",
    "export that base and save the adapter with loftq_config set to {} and init_lora_weights to "
    "true",
)

REFUSED: Mapping[str, Refusal] = MappingProxyType(
    {
        "arrow_config": Refusal("Arrow chooses among adapters for every token", _PLAIN),
        "loftq_config": _LOFTQ,
    }
)

_FOREIGN: Mapping[str, Refusal] = MappingProxyType(
    {
        "lora_E": Refusal("the singular values of AdaLoRA", 'its config says "ADALORA"'),
        "ranknum": Refusal("a counter of AdaLoRA", 'its config says "ADALORA"'),
        "lora_down": Refusal("LoRA as kohya writes it", "leave out its adapter_config.json"),
        "lora_up": Refusal("LoRA as kohya writes it", "leave out its adapter_config.json"),
    }
)

_PLAIN_INITS = frozenset({"eva", "gaussian", "mica", "orthogonal"})
_READ_INITS = frozenset({"olora", "pissa"})
_LOST: Mapping[str, str] = {
    "corda": "by statistics of data that are not saved",
    "lora_ga": "by gradients that are not saved",
    "pissa_niter_": "by a random decomposition that is not saved",
}

# PEFT trains one of these at a time.
_VARIANTS = (
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
_WITH_STARTS = frozenset({"monteclora_config", "use_dora", "velora_config"})
_WITH_BIAS = frozenset({"kasa_config", "monteclora_config", "use_bdlora", "velora_config"})


def check_config(config: PeftConfig) -> None:
    """Raise for the first value or combination that is not served.

    Raises UnsupportedAdapterError for what PEFT trains but does not save whole, and for what it
    does not train; AdapterError for a value of the wrong kind.
    """
    start = _check_init(config)
    variants = [field for field in _VARIANTS if not config.is_neutral(field)]
    if start == "mica":
        variants.append("init_lora_weights")
    if len(variants) > 1:
        raise _not_together(config, variants[0], variants[1])
    if start in _READ_INITS:
        _allow(config, "init_lora_weights", variants, _WITH_STARTS)
    if config.flag("lora_bias"):
        _allow(config, "lora_bias", variants, _WITH_BIAS)
        if start in _READ_INITS:
            raise _not_together(config, "lora_bias", "init_lora_weights")
    if not config.is_neutral("target_parameters"):
        _allow(config, "target_parameters", variants, frozenset())
        if config.flag("lora_bias"):
            raise _not_together(config, "target_parameters", "lora_bias")
        if start in _READ_INITS:
            raise _not_together(config, "target_parameters", "init_lora_weights")


def without_training_state(others: Mapping[str, str], config: PeftConfig) -> dict[str, str]:
    """Leave out what MonteCLoRA and VeLoRA save for training alone."""
    marks = []
    if not config.is_neutral("monteclora_config"):
        marks.append(".lora_monteclora_sampler.")
    if not config.is_neutral("velora_config"):
        marks.append(".lora_velora_embed")
    return {
        name: tensor for name, tensor in others.items() if not any(mark in name for mark in marks)
    }


def refuse_foreign(others: Mapping[str, str], file: Path) -> None:
    """Raise UnsupportedAdapterError for a tensor that another kind or format is known to have."""
    for name, tensor in others.items():
        for part in name.split("."):
            if part in _FOREIGN:
                refusal = _FOREIGN[part]
                raise UnsupportedAdapterError(
                    f"the tensor is {refusal.reason}",
                    where=Where(file=file, tensor=tensor),
                    hint=refusal.hint,
                )


def _check_init(config: PeftConfig) -> str:
    init = config.fields.get("init_lora_weights")
    if init is None or isinstance(init, bool):
        return ""
    where = config.where("init_lora_weights")
    name = init.lower() if isinstance(init, str) else ""
    if name in _PLAIN_INITS | _READ_INITS:
        return name
    for prefix, how in _LOST.items():
        if name.startswith(prefix):
            raise UnsupportedAdapterError(
                f"init_lora_weights is {init!r}: it moved the base's weights before training, "
                f"{how}, so the adapter does not fit the original base",
                where=where,
                hint=_CONVERT,
            )
    if name == "loftq":
        raise UnsupportedAdapterError(
            f"init_lora_weights is {init!r}: {_LOFTQ.reason}", where=where, hint=_LOFTQ.hint
        )
    raise UnsupportedAdapterError(
        f"init_lora_weights is {short(init)}, expected true, false or one of "
        f"{', '.join(sorted(_PLAIN_INITS | _READ_INITS))}",
        where=where,
        hint="set it to true if the base was not changed by the initialization",
    )


def _allow(config: PeftConfig, field: str, variants: list[str], allowed: frozenset[str]) -> None:
    for variant in variants:
        if variant not in allowed:
            raise _not_together(config, field, variant)


def _not_together(config: PeftConfig, one: str, other: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"{one} is {short(config.fields.get(one))} beside {other} = "
        f"{short(config.fields.get(other))}, which PEFT does not train together",
        where=config.where(one),
        hint="the configuration is not the one that the weights were saved with",
    )
