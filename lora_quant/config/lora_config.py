"""`lora_config.yaml`: the adapters, and the use cases that mix them.

adapter:
  - name: tone
    lora_config: tone/adapter_config.json
attach_point_onnx_mapping: attach_points.json
use-case:
  - name: both
    adapter_names: [tone, legal]
    adapter_alphas: [1.0, 0.6]
    model_name: base.onnx
    quant_overrides: both.encodings
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.base_model import (
    ConfigModel,
    PathField,
    PathOrTextField,
    from_document,
    problem,
    raise_problems,
    resolve_path,
)
from lora_quant.config.documents import read_yaml_located
from lora_quant.config.names import FolderName, PlainName, clashes, repeated
from lora_quant.errors import ConfigError, Where, did_you_mean

__all__ = [
    "AdapterConfig",
    "AdapterParamsConfig",
    "LoraConfig",
    "UseCaseInputConfig",
    "read_lora_config",
]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Path | dict | AdapterParamsConfig) else value


def _source_kind(value: Any) -> str:
    return "object" if isinstance(value, dict | AdapterParamsConfig) else "path"


# The discriminator keeps a wrong entry from being reported once per member of the union.
_AdapterSource = Annotated[
    Annotated[PathOrTextField, Tag("path")] | Annotated[AdapterParamsConfig, Tag("object")],
    Discriminator(_source_kind),
]
_Sources = Annotated[list[_AdapterSource], Field(min_length=1)]


class AdapterConfig(ConfigModel):
    """One adapter: its name in use cases, and where its configuration and weights are."""

    name: PlainName = Field(description="Name by which use cases refer to the adapter; unique.")
    adapter_lora_config: Annotated[
        _Sources,
        BeforeValidator(_listed, json_schema_input_type=_AdapterSource | _Sources),
    ] = Field(
        validation_alias="lora_config",
        serialization_alias="lora_config",
        description="Adapter JSON, PEFT folder, adapter_config.json or .safetensors file, as a "
        "path relative to this file, a list of them, or inline objects.",
    )
    task_id: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The task, for a kind of adapter that was trained for several (POLY, "
        "MULTITASK_PROMPT_TUNING).",
    )

    @model_serializer(mode="wrap")
    def _without_task(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The vendor's readers know no task: it is written only where there is one."""
        document: dict[str, Any] = dump(self)
        if self.task_id is None:
            document.pop("task_id")
        return document


def _given_path(value: Any) -> Any:
    """None for the spellings of "none given": null, `null` and any path that ends in `/null`."""
    is_path = isinstance(value, str | Path) and str(value)
    return None if is_path and Path(value).name == "null" else value


class UseCaseInputConfig(ConfigModel):
    """One use case: adapters, the strength of each, and the graph and encodings it is made from."""

    name: FolderName = Field(description="Unique name; becomes a folder of the output.")
    adapter_names: list[PlainName] = Field(
        description="Names of the adapters; empty for the base alone.",
        json_schema_extra={"uniqueItems": True},
    )
    adapter_alphas: list[float] = Field(
        description="The user's strength of each adapter, one per name, in the same order."
    )
    model: PathField = Field(
        validation_alias="model_name",
        serialization_alias="model_name",
        description="The base ONNX graph, or this use case's own with its branches.",
    )
    encodings: PathField | None = Field(
        default=None,
        validation_alias="quant_overrides",
        serialization_alias="quant_overrides",
        description="AIMET encodings of that graph.",
    )
    quant_updatable_tensors: Annotated[
        PathField | None,
        BeforeValidator(_given_path, json_schema_input_type=PathField | None),
    ] = Field(
        default=None,
        description="Text file with one tensor name a line. Absent, null, a missing file and a "
        "path that ends in /null all mean that none is given.",
    )

    def updatable_tensors_file(self) -> Path | None:
        """The list of quant-updatable tensors if one is given and exists, otherwise None."""
        path = self.quant_updatable_tensors
        return path if path is not None and path.is_file() else None

    @model_validator(mode="after")
    def _check(self) -> UseCaseInputConfig:
        problems = []
        names, alphas = self.adapter_names, self.adapter_alphas
        if len(names) != len(alphas):
            problems.append(
                problem(
                    ("adapter_alphas",),
                    f"{len(alphas)} strengths for {len(names)} adapter names",
                    "give one strength per name, in the same order; 1.0 is as trained",
                    alphas,
                )
            )
        twice = (
            problem(
                ("adapter_names", index),
                f"the adapter {name!r} appears twice in the use case {self.name!r}",
                "name it once, with the sum of the strengths",
                name,
            )
            for index, name in repeated(names)
        )
        raise_problems("UseCaseInputConfig", chain(problems, twice))
        return self


class LoraConfig(ConfigModel):
    """The input of a build: adapters, and use cases that mix them."""

    adapter: Annotated[list[AdapterConfig], Field(min_length=1)] = Field(
        description="The adapters. One that no use case names is ignored."
    )
    attach_point_onnx_mapping: PathField | None = Field(
        default=None,
        description="JSON file: module path of the source framework -> ONNX node names.",
    )
    use_cases: Annotated[list[UseCaseInputConfig], Field(min_length=1)] = Field(
        validation_alias="use-case",
        serialization_alias="use-case",
        description="The use cases to switch between at run time.",
    )

    def unused_adapters(self) -> tuple[str, ...]:
        """Names of the adapters that no use case names, in the order of the file."""
        used = {name for use_case in self.use_cases for name in use_case.adapter_names}
        return tuple(a.name for a in self.adapter if a.name not in used)

    def alone(self, use_case: str, source: Path | None = None) -> LoraConfig:
        """The same configuration with one use case and its adapters only.

        Raises ConfigError, naming the file `source`, if there is no such use case.
        """
        kept = [u for u in self.use_cases if u.name == use_case]
        if not kept:
            raise ConfigError(
                f"there is no use case {use_case!r}",
                where=Where(file=source, field="use-case", use_case=use_case),
                hint=did_you_mean(use_case, [u.name for u in self.use_cases]),
            )
        adapters = [a for a in self.adapter if a.name in kept[0].adapter_names]
        return self.model_copy(update={"adapter": adapters, "use_cases": kept})

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        raise_problems("LoraConfig", chain(self._name_problems(), self._unknown_adapters()))
        return self

    def _name_problems(self) -> Iterator[InitErrorDetails]:
        seen: set[str] = set()
        for index, adapter in enumerate(self.adapter):
            name = adapter.name
            if name not in seen:
                seen.add(name)
                continue
            yield problem(
                ("adapter", index, "name"),
                f"the adapter name {name!r} is already taken",
                "give each adapter its own name",
                name,
            )
        names = [u.name for u in self.use_cases]
        for index, earlier in clashes(names):
            name = names[index]
            how = "is already taken" if name == earlier else f"makes the same folder as {earlier!r}"
            yield problem(
                ("use-case", index, "name"),
                f"the use case name {name!r} {how}",
                "names must differ by more than case, since some file systems ignore it",
                name,
            )

    def _unknown_adapters(self) -> Iterator[InitErrorDetails]:
        known = {a.name for a in self.adapter}
        for index, use_case in enumerate(self.use_cases):
            for place, name in enumerate(use_case.adapter_names):
                if name not in known:
                    yield problem(
                        ("use-case", index, "adapter_names", place),
                        f"the use case {use_case.name!r} names the unknown adapter {name!r}",
                        did_you_mean(name, known),
                        name,
                    )


def read_lora_config(path: Path) -> LoraConfig:
    """Read `lora_config.yaml`; its relative paths are taken from its own folder.

    Raises InputMissingError if the file is missing, and ConfigError with line and column if it is
    not accepted. The files it names are not opened.
    """
    return resolve_lora_config(from_document(LoraConfig, read_yaml_located(path)), path.parent)


def resolve_lora_config(config: LoraConfig, folder: Path) -> LoraConfig:
    """The same configuration with every relative path taken from `folder`."""
    return map_paths(config, lambda path: resolve_path(path, folder))


def map_paths(config: LoraConfig, change: Callable[[Path], Path]) -> LoraConfig:
    """The same configuration with `change` applied to every path."""

    def optional(path: Path | None) -> Path | None:
        return None if path is None else change(path)

    adapters = [
        adapter.model_copy(
            update={
                "adapter_lora_config": [
                    source if isinstance(source, AdapterParamsConfig) else change(Path(source))
                    for source in adapter.adapter_lora_config
                ]
            }
        )
        for adapter in config.adapter
    ]
    use_cases = [
        use_case.model_copy(
            update={
                "model": change(use_case.model),
                "encodings": optional(use_case.encodings),
                "quant_updatable_tensors": optional(use_case.quant_updatable_tensors),
            }
        )
        for use_case in config.use_cases
    ]
    return config.model_copy(
        update={
            "adapter": adapters,
            "attach_point_onnx_mapping": optional(config.attach_point_onnx_mapping),
            "use_cases": use_cases,
        }
    )
