"""Rules about encodings files: what their readers see, and what graphs and devices need."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

INVALID = Rule(
    "encodings/invalid",
    Level.SCHEMA,
    Severity.ERROR,
    "the parts of an encoding do not fit each other",
    "A scale of 0, another number of offsets than of scales, an offset outside the grid: tools "
    "read different numbers out of such an entry, or none.",
    "Export the encodings again, or correct the entry that is named.",
)

STALE_RANGE = Rule(
    "encodings/stale-range",
    Level.SCHEMA,
    Severity.WARNING,
    "min and max are not those of scale and offset",
    "Both are in the file, and tools differ in which they read. Somebody changed one and not the "
    "other.",
    "Make min = offset * scale and max = (offset + 2^bitwidth - 1) * scale.",
)

UNKNOWN_KEY = Rule(
    "encodings/unknown-key",
    Level.SCHEMA,
    Severity.WARNING,
    "an entry has a key that is not known",
    "It is not read and not carried over to what is written. A key that is spelt wrong is a value "
    "that is not given.",
    "Correct its spelling, or remove it.",
)

RULES = (
    INVALID,
    STALE_RANGE,
    UNKNOWN_KEY,
    Rule(
        "encodings/int32-bias",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the 32-bit entry of a bias is left out",
        "The version that is written has none for biases. A converter has to compute it from the "
        "scales of input and weight, or leaves the bias in float.",
        "Write 2.0.0 to keep it.",
    ),
    Rule(
        "encodings/float-left-out",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the entry of a float tensor is left out",
        "Version 2.0.0 has no entry for a tensor that stays in floating point. Without one the "
        "converter decides.",
        "Write 0.6.1 or 1.0.0 if the tensor has to stay in float.",
    ),
    Rule(
        "encodings/one-channel",
        Level.CROSS_FILE,
        Severity.NOTE,
        "one channel cannot be told from per tensor",
        "An entry of 0.6.1 has no type: a list of one scale is read as per tensor, and the "
        "converter may choose another kernel.",
        "Write 1.0.0 or 2.0.0 if the tensor is meant to be quantized per channel.",
    ),
)
