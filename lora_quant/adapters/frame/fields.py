"""Accounting for every field of `adapter_config.json`.

A field is used by the rule, known to have no effect on the result, refused with a reason of its
own, or unknown: then it is refused too, unless it is not in use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import UnsupportedAdapterError, short

SELECTING = frozenset(
    {
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "target_modules",
    }
)

WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)


@dataclass(frozen=True)
class Refusal:
    """Why something is refused, and what to do instead."""

    reason: str
    hint: str


def check_fields(
    config: PeftConfig, accepted: Collection[str], refused: Mapping[str, Refusal]
) -> None:
    """Raise UnsupportedAdapterError for the first field that is in use and not accepted.

    `accepted` are those that the rule reads or that change nothing for its kind, beside the ones
    that every kind has.
    """
    for field, value in config.fields.items():
        if field in SELECTING or field in WITHOUT_EFFECT or field in accepted:
            continue
        if config.is_neutral(field):
            continue
        refusal = refused.get(field)
        if refusal is not None:
            raise UnsupportedAdapterError(
                f"{field} is set: {refusal.reason}", where=config.where(field), hint=refusal.hint
            )
        raise UnsupportedAdapterError(
            f"{field} is {short(value)}, and what it does is not known here",
            where=config.where(field),
            hint="if it does not change the result, remove it or set it to null",
        )
