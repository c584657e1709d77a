"""Module patterns of PEFT's `rank_pattern` and `alpha_pattern`.

A key matches a module when it is a regular expression for the whole path or for its last parts
(PEFT's get_pattern_key). The first key in file order wins. PEFT sorts the keys when it saves, so
after training with two overlapping keys a reload may choose the other one; we agree with the
reload, and a difference that could matter is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import AdapterError
from lora_quant.findings import Finding, Severity

_LAST_PARTS = r"(.*\.)?(%s)$"

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Matched(Generic[Number]):
    """The value that one module takes, and the key that gave it (None: the default)."""

    value: Number
    key: str | None


def compile_regex(
    config: PeftConfig, field: str, pattern: str, *, form: str = "%s"
) -> re.Pattern[str]:
    """A user's expression set into `form`; AdapterError naming the field if it is none."""
    try:
        return re.compile(form % pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(
            f"{pattern!r} in {field} is not a regular expression: {error}",
            where=config.where(field),
            hint="name a module or its last parts, or correct the expression",
        ) from error


def match_patterns(
    config: PeftConfig,
    field: str,
    patterns: Mapping[str, Number],
    default: Number,
    modules: Iterable[str],
) -> tuple[dict[str, Matched[Number]], tuple[Finding, ...]]:
    """The value of each module, and findings: keys that compete for a module, keys without one."""
    compiled = [
        (key, compile_regex(config, field, key, form=_LAST_PARTS), patterns[key])
        for key in patterns
    ]
    unused = dict.fromkeys(patterns)
    values: dict[str, Matched[Number]] = {}
    findings: list[Finding] = []
    for module in modules:
        hits = [(key, value) for key, pattern, value in compiled if pattern.match(module)]
        for key, _ in hits:
            unused.pop(key, None)
        values[module] = Matched(hits[0][1], hits[0][0]) if hits else Matched(default, None)
        if len({value for _, value in hits}) > 1:
            findings.append(_competing(config, field, module, hits))
    findings += [_unused(config, field, key) for key in unused]
    return values, tuple(findings)


def _competing(
    config: PeftConfig, field: str, module: str, hits: list[tuple[str, Number]]
) -> Finding:
    listed = ", ".join(f"{key!r}: {value}" for key, value in hits)
    return Finding(
        rule=f"adapter/competing-{field.replace('_', '-')}",
        severity=Severity.WARNING,
        message=f"several keys of {field} match module {module!r} ({listed}); the first one in "
        "the file is used, as PEFT does on loading, but training may have used another",
        where=config.where(field),
        hint="make the keys exclude each other, in the order that was used in training",
    )


def _unused(config: PeftConfig, field: str, key: str) -> Finding:
    return Finding(
        rule=f"adapter/unused-{field.replace('_', '-')}",
        severity=Severity.WARNING,
        message=f"the key {key!r} of {field} matches no module of the checkpoint",
        where=config.where(field),
        hint="check its spelling; a key without a module has no effect",
    )
