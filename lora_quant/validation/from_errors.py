"""Errors of the project's readers as findings: a check goes on where a build stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_quant.errors import AdapterError, EncodingsError, GraphError, LoraQuantError
from lora_quant.findings import Finding, Severity

_AREAS = ((AdapterError, "adapter"), (EncodingsError, "encodings"), (GraphError, "graph"))


def finding_of(error: LoraQuantError, *, shown: Path) -> Finding:
    """The finding `<area>/<code of the error>`, placed in the file `shown`.

    The area is adapter, encodings or graph by the class of the error, and otherwise document.
    """
    area = next((name for kind, name in _AREAS if isinstance(error, kind)), "document")
    return Finding(
        rule=f"{area}/{error.code}",
        severity=Severity.ERROR,
        message=error.message,
        where=replace(error.where, file=shown),
        hint=error.hint,
    )
