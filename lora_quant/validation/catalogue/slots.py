"""Rules about the strengths of adapters."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "slots/negative-strength",
        Level.DEVICE,
        Severity.WARNING,
        "a strength is negative",
        "The range of the alpha input starts at 0 in the vendor's flow: there, a negative strength "
        "clips to 0, which is off. The range that lora-quant makes covers the strengths of all use "
        "cases; one that the base's encodings have is kept.",
        "Check the range of the alpha input in what the converter makes of the graph, or negate B "
        "and use a positive strength.",
    ),
    Rule(
        "slots/beyond-alpha",
        Level.CROSS_FILE,
        Severity.NOTE,
        "a part of an adapter does not follow its strength",
        "A trained bias is in the weights at the strength of the use case. Strength 0 at run time "
        "does not switch it off.",
        "Switch to a use case without the adapter to switch it off.",
    ),
)
