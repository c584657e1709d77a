"""Rules about a pack: its files against its manifest."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

MANIFEST_CHANGED = Rule(
    "pack/manifest-changed",
    Level.CROSS_FILE,
    Severity.ERROR,
    "pack.json is not as it was written",
    "The manifest is what every other file of the pack is held against. Its own SHA-256 is in the "
    "field manifest_sha256, made with zeros in place of its 64 digits, and does not fit the bytes "
    "of the file: a bit flipped, or somebody edited it.",
    "Build the pack again, or take the file from an undamaged copy.",
)

RULES = (MANIFEST_CHANGED,)
