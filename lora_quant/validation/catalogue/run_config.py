"""Rules about run configs, against the pack beside them."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

USE_CASE = Rule(
    "run-config/use-case",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the run config names a use case that the pack does not have",
    "A session has nothing to switch to.",
    "Name one of the pack's use cases.",
)

ADAPTER = Rule(
    "run-config/adapter",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the run config gives a strength to an adapter that the use case does not have",
    "There is no slot that the strength could go to.",
    "Name an adapter of the use case, or choose the use case that has it.",
)

RULES = (USE_CASE, ADAPTER)
