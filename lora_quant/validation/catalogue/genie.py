"""Rules about configurations of Genie, by themselves."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.catalogue.sections import section_rules
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "genie/no-lora",
        Level.SCHEMA,
        Severity.NOTE,
        "the configuration has no lora block",
        "Nothing switches: Genie runs the model without adapters.",
        "Add the block if adapters are meant to be used.",
    ),
    Rule(
        "genie/section-count",
        Level.SCHEMA,
        Severity.ERROR,
        "the number of sections differs from that of context binaries",
        "Every adapter needs one section for each context binary, in the same order. Otherwise a "
        "part of the model keeps the weights of another use case, or Genie refuses the file.",
        "Name one section for each context binary, in the same order.",
    ),
    *section_rules("genie"),
)
