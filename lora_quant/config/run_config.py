"""Which use case runs, and how strong its adapters are: the state of a session."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from lora_quant.config.base_model import ConfigModel, from_document, problem, raise_problems
from lora_quant.config.documents import read_yaml_located
from lora_quant.config.names import FolderName, PlainName, repeated


class AdapterRunConfig(ConfigModel):
    """The strength of one adapter at run time, absolute: 0 is off, 1 is as trained."""

    name: PlainName = Field(description="Name of the adapter.")
    alpha: float = Field(description="Its strength; replaces the one of the use case.")


class UseCaseRunConfig(ConfigModel):
    """A use case to switch to. Adapters that are not named keep their compiled strength."""

    name: FolderName = Field(description="Name of the use case.")
    adapters: list[AdapterRunConfig] = Field(
        default_factory=list, description="Strengths that differ from the compiled ones."
    )

    @model_validator(mode="after")
    def _check(self) -> UseCaseRunConfig:
        raise_problems(
            "UseCaseRunConfig",
            (
                problem(
                    ("adapters", index, "name"),
                    f"the adapter {name!r} is named twice",
                    "give it one strength",
                    name,
                )
                for index, name in repeated(a.name for a in self.adapters)
            ),
        )
        return self


def read_run_config(path: Path) -> UseCaseRunConfig:
    """Read a run config from YAML or JSON."""
    return from_document(UseCaseRunConfig, read_yaml_located(path))
