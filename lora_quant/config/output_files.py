"""The two YAML files that hand the use cases to the vendor's tools.

    lora_importer_config.yaml    use_case: [{name, model_name, lora_weights, quant_overrides, ...}]
    lora_output_files.yaml       use_case: [{name, graph, weights, encodings}]

The weights have a key of their own in each; both spellings are read in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from lora_quant.config.base_model import (
    ConfigModel,
    PathField,
    from_document,
    problem,
    raise_problems,
    resolve_path,
)
from lora_quant.config.documents import read_yaml_located
from lora_quant.config.names import FolderName, clashes

_WEIGHTS_KEYS = ("lora_weights", "weights")


def _accept_both_weights_keys(schema: dict[str, Any]) -> None:
    """Tell a JSON schema what `AliasChoices` means: either key, not both."""
    properties = schema["properties"]
    for key in _WEIGHTS_KEYS:
        if key in properties:
            written = key
    other = next(key for key in _WEIGHTS_KEYS if key != written)
    properties[other] = {
        **properties[written],
        "description": f"Another spelling of {written}, read but not written.",
    }
    schema["required"] = [key for key in schema["required"] if key != written]
    schema["oneOf"] = [{"required": [written]}, {"required": [other]}]


class UseCaseOutputConfig(ConfigModel):
    """One use case for the importer."""

    model_config = ConfigDict(json_schema_extra=_accept_both_weights_keys)

    name: FolderName = Field(description="Name of the use case.")
    model_name: PathField = Field(description="The max-rank ONNX graph.")
    lora_weights: PathField = Field(
        validation_alias=AliasChoices("lora_weights", "weights"),
        serialization_alias="lora_weights",
        description="The use case's weights, safetensors.",
    )
    quant_overrides: PathField | None = Field(
        default=None, description="The use case's complete encodings."
    )
    output_path: PathField | None = Field(
        default=None, description="Where the importer puts what it makes."
    )


class AdapterWeightConfig(ConfigModel):
    """One use case for the context binary generator."""

    model_config = ConfigDict(json_schema_extra=_accept_both_weights_keys)

    name: FolderName = Field(description="Name of the use case.")
    graph: Annotated[str, Field(min_length=1)] = Field(
        description="Name of the graph in the context binary; not a path."
    )
    weights: PathField = Field(
        validation_alias=AliasChoices("weights", "lora_weights"),
        serialization_alias="weights",
        description="The use case's weights.",
    )
    encodings: PathField | None = Field(default=None, description="The use case's encodings.")


class LoraImporterConfig(ConfigModel):
    """`lora_importer_config.yaml`."""

    use_case: Annotated[list[UseCaseOutputConfig], Field(min_length=1)] = Field(
        description="The use cases, each with its own name."
    )

    @model_validator(mode="after")
    def _check(self) -> LoraImporterConfig:
        _refuse_clashes([u.name for u in self.use_case])
        return self


class LoraOutputFiles(ConfigModel):
    """`lora_output_files.yaml`."""

    use_case: Annotated[list[AdapterWeightConfig], Field(min_length=1)] = Field(
        description="The use cases, each with its own name."
    )

    @model_validator(mode="after")
    def _check(self) -> LoraOutputFiles:
        _refuse_clashes([u.name for u in self.use_case])
        return self


def _refuse_clashes(names: list[str]) -> None:
    raise_problems(
        "use_case",
        [
            problem(
                ("use_case", index, "name"),
                f"the use case name {names[index]!r} makes the same folder as {earlier!r}",
                "give each use case its own name",
                names[index],
            )
            for index, earlier in clashes(names)
        ],
    )


def read_importer_config(path: Path) -> LoraImporterConfig:
    """Read `lora_importer_config.yaml`; its relative paths are taken from its own folder."""
    config = from_document(LoraImporterConfig, read_yaml_located(path))
    fields = ("model_name", "lora_weights", "quant_overrides", "output_path")
    return config.model_copy(
        update={"use_case": [_resolved(u, fields, path.parent) for u in config.use_case]}
    )


def read_output_files(path: Path) -> LoraOutputFiles:
    """Read `lora_output_files.yaml`; its relative paths are taken from its own folder."""
    config = from_document(LoraOutputFiles, read_yaml_located(path))
    fields = ("weights", "encodings")
    return config.model_copy(
        update={"use_case": [_resolved(u, fields, path.parent) for u in config.use_case]}
    )


def _resolved(item: ConfigModel, fields: tuple[str, ...], folder: Path) -> ConfigModel:
    given = {name: getattr(item, name) for name in fields}
    return item.model_copy(
        update={
            name: resolve_path(path, folder) for name, path in given.items() if path is not None
        }
    )
