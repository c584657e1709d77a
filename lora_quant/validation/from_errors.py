"""Errors of the project's readers as findings: a check goes on where a build stops.

AttachPointError  ->  graph/attach-point          ConfigError  ->  document/invalid
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from lora_quant.errors import (
    AdapterError,
    AttachPointError,
    ConfigError,
    EncodingsError,
    GraphError,
    InputMissingError,
    LoraQuantError,
    UnsupportedAdapterError,
)
from lora_quant.findings import Finding
from lora_quant.validation.catalogue import adapter, document, encodings, graph
from lora_quant.validation.rule import Rule

RULES_OF_ERRORS: Final[tuple[tuple[type[LoraQuantError], Rule], ...]] = (
    (UnsupportedAdapterError, adapter.UNSUPPORTED),
    (AdapterError, adapter.INVALID),
    (EncodingsError, encodings.INVALID),
    (AttachPointError, graph.ATTACH_POINT),
    (GraphError, graph.INVALID),
    (InputMissingError, document.MISSING),
    (LoraQuantError, document.INVALID),
)
"""The first class that an error is of decides; every error is of the last."""


def rule_of(error: LoraQuantError) -> Rule:
    """The rule that is broken where a reader raises `error`."""
    return next(rule for kind, rule in RULES_OF_ERRORS if isinstance(error, kind))


def findings_of(error: LoraQuantError, *, shown: Path) -> tuple[Finding, ...]:
    """A finding for each problem that an error lists, or one for the error itself."""
    parts = error.parts if isinstance(error, ConfigError) else ()
    return tuple(finding_of(part, shown=shown) for part in parts or (error,))


def finding_of(error: LoraQuantError, *, shown: Path) -> Finding:
    """The finding of an error, placed in the file `shown`; its hint is the error's own."""
    rule = rule_of(error)
    return Finding(
        rule.id, rule.severity, error.message, replace(error.where, file=shown), error.hint
    )
