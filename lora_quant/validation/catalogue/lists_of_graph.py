"""Rules about lists of tensors, held against a graph."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

UNKNOWN_TENSOR = Rule(
    "list/unknown-tensor",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the list names tensors that the graph does not have",
    "The converter finds no such tensor, and leaves it out or stops. The list was made for another "
    "export. Names of branches are let through where the graph has no branches yet.",
    "Make the list again from this graph.",
)

NOT_STORED = Rule(
    "list/not-stored",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a list of LoRA weights names tensors that are no initializers",
    "The converter looks the names of --lora_weight_list up among the initializers of the graph. A "
    "graph input or an activation has no values to replace.",
    "Make the weights initializers of the graph, or take the name out of the list.",
)

RULES = (UNKNOWN_TENSOR, NOT_STORED)
