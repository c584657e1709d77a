"""Rows of a table that the base may hold a second time, as the weight of a tied output layer.

A file that has the rows of one module only leaves the other to the base: where both are one
parameter, PEFT replaces the rows in both. Rows of several modules are all that there is to replace.
"""

from __future__ import annotations

from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity


def ties_notice(module: str, where: Where) -> Finding:
    """What to know of rows that go along with the base's ties."""
    return Finding(
        rule="adapter/rows-with-ties",
        severity=Severity.NOTE,
        message=f"rows of {module!r} are replaced; where the base ties its output layer to this "
        "table, they are replaced there too, as PEFT does",
        where=where,
    )
