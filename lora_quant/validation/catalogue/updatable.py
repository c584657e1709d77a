"""Rules about lists of quant-updatable tensors, held against the mode of a build."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "updatable/no-list",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the list of updatable tensors does not exist",
        "The mode alone says which tensors may change between use cases. If the list was moved, "
        "what it said is lost.",
        "Correct quant_updatable_tensors, or leave it out.",
    ),
    Rule(
        "updatable/unknown-tensor",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the list names tensors that the graph does not have",
        "The converter finds no such tensor. The list was made for another export.",
        "Make the list again from this graph, and check that the mode is the one it was made for.",
    ),
    Rule(
        "updatable/fixed-in-mode",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the list names tensors that the mode keeps fixed",
        "They keep the encoding of the base: ranges that the use case brings for them are not "
        "used, and values beyond the base's range clip.",
        "Choose the mode that the list was made for.",
    ),
    Rule(
        "updatable/not-listed",
        Level.CROSS_FILE,
        Severity.WARNING,
        "tensors are updated and not in the list",
        "The use case brings encodings of its own for them, and the mode lets them change. The "
        "list says otherwise, so one of the two is from another run.",
        "Check that the mode is the one that the list was made for.",
    ),
)
