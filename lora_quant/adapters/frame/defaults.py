"""Rank and alpha that a configuration does not give, so that PEFT's defaults stand in for them.

PEFT writes every field; a configuration without them was written by hand or by something else, and
may mean another value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.patterns import Matched
from lora_quant.findings import Finding, Severity

Setting: TypeAlias = "Matched[int] | Matched[float]"


def absent_field(
    config: PeftConfig, field: tuple[str, float] | None, used: Iterable[Setting]
) -> str | None:
    """The name of a field (name, default) that is not given though a setting in use is from it."""
    if field is None or config.fields.get(field[0]) is not None:
        return None
    return field[0] if any(one.key is None for one in used) else None


def alpha_notice(
    config: PeftConfig, field: tuple[str, float] | None, used: Iterable[Setting]
) -> tuple[Finding, ...]:
    """A note if the scale of any module rests on the default of alpha."""
    absent = absent_field(config, field, used)
    if field is None or absent is None:
        return ()
    return (
        Finding(
            rule="adapter/alpha-not-given",
            severity=Severity.NOTE,
            message=f"the configuration has no {absent}: {field[1]:g} is used, PEFT's default",
            where=config.where(absent),
            hint=f"the scale depends on it: add the {absent} of the training",
        ),
    )
