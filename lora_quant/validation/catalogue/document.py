"""Rules about reading YAML and JSON."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

INVALID = Rule(
    "document/invalid",
    Level.SCHEMA,
    Severity.ERROR,
    "the document cannot be read, or its reader refuses it",
    "It is no sound YAML or JSON, or says what a schema cannot forbid: a key twice, NaN, a YAML "
    "tag, a name that is used twice. Other tools may read such a file in another way without a "
    "word, for example keep the second of two equal keys.",
    "Correct the place that is named.",
)

MISSING = Rule(
    "document/missing",
    Level.SCHEMA,
    Severity.ERROR,
    "the file does not exist or cannot be read",
    "A build or a tool of the flow that needs the file would stop at it.",
    "Check the path and the permissions; relative paths start at the file that holds them.",
)

RULES = (INVALID, MISSING)
