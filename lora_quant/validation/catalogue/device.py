"""Rules about what devices and their tools take."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

BLOCK_SIZE = Rule(
    "device/block-size",
    Level.DEVICE,
    Severity.ERROR,
    "the block size of an encoding is none that the HTP takes",
    "The HTP takes blocks of 16, 32, 64, ... values. The converter refuses others, or computes the "
    "layer in float.",
    "Quantize with a block size that is a power of two and at least 16.",
)

RULES = (BLOCK_SIZE,)
