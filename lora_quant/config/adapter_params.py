"""The adapter JSON: rank, alpha and target modules, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lora_quant.config.base_model import ConfigModel, Number, from_document
from lora_quant.config.documents import read_json_located
from lora_quant.config.names import PlainName


class AdapterParamsConfig(ConfigModel):
    """Shape and place of one adapter; it cannot tell rsLoRA, rank patterns or DoRA."""

    name: PlainName = Field(description="Name of the adapter.")
    rank: int = Field(ge=1, description="Rank r of the adapter.")
    alpha: Number = Field(
        description="lora_alpha: the adapter is scaled by alpha / rank. Not the strength of a use "
        "case."
    )
    target_modules: Annotated[list[PlainName], Field(min_length=1)] = Field(
        description="Modules that the adapter changes: full names or their last parts."
    )


def read_adapter_params(path: Path) -> AdapterParamsConfig:
    """Read an adapter JSON; ConfigError with line and column if it is not accepted."""
    return from_document(AdapterParamsConfig, read_json_located(path))
