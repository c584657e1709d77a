"""Patterns that name a module's last parts, in the stricter form that a few kinds of PEFT use.

Unlike `rank_pattern`, a key is an expression only behind a dot: `[qk]_proj` means
`layers.0.q_proj`, but not a module `q_proj` of the top level. The first such key in file order
wins; where there is none, a key that is the module's whole path counts, letter by letter.
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
    if module in patterns:
        return patterns[module]
    return config.positive(default, number)
