"""The machine-readable result of a command, printed with `--json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, Strict

from lora_quant.config.base_model import ConfigModel, to_document
from lora_quant.config.documents import dump_json
from lora_quant.config.finding_records import FindingRecord


class Report(ConfigModel):
    """What a command found and made. It holds no times, so equal runs print equal reports."""

    schema_version: Literal[1] = Field(default=1, description="Version of this layout.")
    command: str = Field(description="Name of the command.", min_length=1)
    ok: bool = Field(description="Whether the command did what was asked, without an error.")
    findings: Annotated[tuple[FindingRecord, ...], Strict(False)] = Field(
        default=(), description="What was noticed, in the order it was noticed."
    )
    outputs: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="Paths of what was written."
    )
    details: dict[str, JsonValue] = Field(
        default_factory=dict, description="Results that are particular to the command."
    )

    def dump(self) -> str:
        """The report as JSON text."""
        return dump_json(to_document(self, exclude_none=True))
