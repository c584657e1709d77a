"""Rules about what the files of a pack say of each other, and of the base."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

OTHER_BASE = Rule(
    "pack/other-base",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the pack was built on another base",
    "Branches and encodings belong to the graph and the weights that they were made for. On "
    "another base the adapters act on values that they were not trained with, without an error on "
    "the device.",
    "Give the base that the pack was built on, or build the pack again on this one.",
)

FIXED_TENSOR = Rule(
    "pack/fixed-tensor",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a use case changes the encoding of a tensor that is fixed",
    "A tensor that is not in the list of quant-updatable tensors keeps the encoding that the "
    "context was compiled with, which is that of base_encodings.json. The use case was calibrated "
    "with another one, so its results differ from those that were measured.",
    "Build the pack again; if the tensor has to change, with a mode that lets it.",
)

UPDATABLE_MODE = Rule(
    "pack/updatable-mode",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a list of quant-updatable tensors does not match the mode",
    "The mode of the manifest says which encodings may change: none of them, those of the branches "
    "(adapter_only), or those of activations of the base as well (all), and never those of the "
    "base's weights. The vendor's tools go by the list.",
    "Build the pack again.",
)

UPDATABLE_DIFFERS = Rule(
    "pack/updatable-differs",
    Level.CROSS_FILE,
    Severity.ERROR,
    "use cases have different lists of quant-updatable tensors",
    "A tensor that one use case changes and another does not name keeps the grid of the first "
    "after a switch. The lists of all use cases have to be equal.",
    "Build the pack again.",
)

RULES = (OTHER_BASE, FIXED_TENSOR, UPDATABLE_MODE, UPDATABLE_DIFFERS)
