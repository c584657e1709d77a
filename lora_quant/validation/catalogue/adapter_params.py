"""Rules about adapter JSON files, against the weights beside them."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

OTHER_WEIGHTS = Rule(
    "adapter-params/other-weights",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the adapter JSON contradicts the weights in its folder",
    "Rank, alpha or target modules are not those of the checkpoint. A wrong alpha makes the "
    "adapter too strong or too weak.",
    "Correct the JSON, or keep it apart from weights that it does not belong to.",
)

RULES = (OTHER_WEIGHTS,)
