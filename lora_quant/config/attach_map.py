"""The attach point mapping: module path of the source framework -> names of its ONNX nodes."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, RootModel

from lora_quant.config.base_model import STRICT, from_document
from lora_quant.config.documents import read_json_located
from lora_quant.config.names import PlainName


class AttachPointMap(RootModel[dict[PlainName, list[PlainName]]]):
    """Every module of the source model with its ONNX nodes, not only the attach points.

    A list may hold several nodes (a Transpose and a Conv) or none.
    """

    # Without this the schema lets every key through that does not match the pattern of the keys.
    model_config = ConfigDict(**STRICT, json_schema_extra={"additionalProperties": False})

    root: dict[PlainName, list[PlainName]] = Field(
        description="Module path -> names of the ONNX nodes it became."
    )


def read_attach_map(path: Path) -> dict[str, list[str]]:
    """Read a mapping JSON; ConfigError with line and column if it is not accepted."""
    return from_document(AttachPointMap, read_json_located(path)).root
