"""A PEFT configuration for a checkpoint that has none: ranks and alphas of its modules.

The commonest rank and alpha become `r` and `lora_alpha`; modules that deviate are listed in
`rank_pattern` and `alpha_pattern` by their whole path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Strength:
    """What the scale of a module is made of: alpha over rank."""

    rank: int
    alpha: float


def make_config(
    file: Path,
    peft_type: str,
    strengths: Mapping[str, Strength],
    *,
    alpha_field: str = "lora_alpha",
    default: Strength | None = None,
    **fields: Any,
) -> PeftConfig:
    """The configuration of modules with these strengths; `file` is named in errors about it.

    `default` takes the place of the commonest rank and alpha.
    """
    ranks, rank_pattern = _common(
        {m: s.rank for m, s in strengths.items()}, None if default is None else default.rank
    )
    alphas, alpha_pattern = _common(
        {m: s.alpha for m, s in strengths.items()}, None if default is None else default.alpha
    )
    made = {
        "peft_type": peft_type,
        "target_modules": sorted(strengths),
        "r": ranks,
        alpha_field: alphas,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        **fields,
    }
    return PeftConfig(file, peft_type, MappingProxyType(made))


def assumed_alpha(file: Path, modules: Iterable[str], who: str) -> tuple[Finding, ...]:
    """A note that these modules had no alpha, so that their rank was taken; none if there are none.

    `who` says whose convention that is.
    """
    listed = sorted(modules)
    if not listed:
        return ()
    return (
        Finding(
            rule="adapter/alpha-not-given",
            severity=Severity.NOTE,
            message=f"{len(listed)} modules have no alpha, so their scale is 1, as {who} does: "
            f"{some(listed)}",
            where=Where(file=file),
            hint="if it was trained with another alpha, save it with that alpha",
        ),
    )


def _common(
    values: Mapping[str, _Number], default: _Number | None
) -> tuple[_Number, dict[str, _Number]]:
    """The default, and pattern -> value for the others.

    Without one it is the commonest value, at a tie the first by module.
    """
    counts = Counter(values[module] for module in sorted(values))
    common = counts.most_common(1)[0][0] if default is None else default
    ambiguous = {rest for module in values for rest in _shorter(module)}
    return common, {
        # a pattern matches the last parts of a path too, unless it is held to the start
        (r"\A" if module in ambiguous else "") + re.escape(module): value
        for module, value in sorted(values.items())
        if value != common
    }


def _shorter(module: str) -> Iterable[str]:
    """The path without its first levels, for every number of them."""
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts)))
