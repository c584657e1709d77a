"""Patterns that name a module's last parts, in the stricter form that a few kinds of PEFT use.

Unlike `rank_pattern`, a key matches only behind a dot: `q_proj` means `layers.0.q_proj`, but not a
module `q_proj` of the top level. The first key in file order wins.
"""

from __future__ import annotations

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.patterns import compile_regex


def dotted_value(config: PeftConfig, field: str, default: str, module: str, number: int) -> int:
    """The module's value in `field`, else that of the field `default`, else `number`."""
    patterns = config.positive_patterns(field)
    for key in patterns:
        if compile_regex(config, field, key, form=r".*\.%s$").match(module):
            return patterns[key]
    return config.positive(default, number)
