"""Findings as part of a file: the manifest's and the report's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from lora_quant.config.base_model import ConfigModel
from lora_quant.findings import Finding


class WhereRecord(ConfigModel):
    """The place that a finding speaks of; only the parts that are known are there."""

    file: str | None = Field(default=None, description="File, with forward slashes.")
    line: int | None = Field(default=None, ge=1)
    column: int | None = Field(default=None, ge=1)
    field: str | None = None
    use_case: str | None = None
    adapter: str | None = None
    module: str | None = None
    tensor: str | None = None
    node: str | None = None


class FindingRecord(ConfigModel):
    """One finding."""

    rule: str = Field(description="Stable id such as encodings/missing-activation.", min_length=1)
    severity: Literal["error", "warning", "note"] = Field(
        description="An error fails a check; the others inform."
    )
    message: str = Field(description="What was noticed.")
    where: WhereRecord | None = Field(default=None, description="Where it was noticed.")
    hint: str | None = Field(default=None, description="What to do.")

    @staticmethod
    def of(finding: Finding, *, relative_to: Path | None = None) -> FindingRecord:
        """The record of `finding`; its file is written relative to `relative_to` if given."""
        where = finding.where.as_dict()
        file = finding.where.file
        if file is not None and relative_to is not None:
            where["file"] = portable_relative(file, relative_to) or file.name
        return FindingRecord(
            rule=finding.rule,
            severity=finding.severity.value,
            message=finding.message,
            where=WhereRecord.model_validate(where) if where else None,
            hint=finding.hint,
        )


def portable_relative(path: Path, folder: Path) -> str | None:
    """`path` relative to `folder` with forward slashes; None if they are on different drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return None
