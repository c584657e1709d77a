"""The `lora` block of Genie's configuration, alone or in the files that hold it.

{"dialog": {"engine": {"model": {"binary": {"lora": {
  "version": 1, "alpha-tensor-name": "lora_alpha", "adapters": [
    {"version": 1, "name": "both", "alphas": ["tone", "legal"], "bin-sections": ["both.bin"]}]}}}}}}

An adapter of Genie's is a use case of ours. `alphas` names the entries of the strengths' input one
by one, so that an application can set them by name; `bin-sections` has one file for each file of
`ctx-bins`. The format is the vendor's: keys that are not known here are let be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import InitErrorDetails

from lora_quant.config.base_model import ConfigModel, from_document, problem, raise_problems
from lora_quant.config.documents import read_json_located
from lora_quant.config.genie_roots import GENIE_ROOTS
from lora_quant.config.names import PlainName
from lora_quant.config.plain_values import PathParts

_TO_BLOCK: Final = ("model", "binary", "lora")


class _Open(ConfigModel):
    """Part of a file that may hold more than what is known here."""

    model_config = ConfigDict(extra="allow")


class GenieLoraAdapter(_Open):
    """One use case for Genie."""

    version: Literal[1] = Field(description="Version of this layout.")
    name: PlainName = Field(description="Name of the use case.")
    alphas: list[PlainName] = Field(
        description="Name of every entry of the strengths' input, in its order."
    )
    bin_sections: Annotated[list[str], Field(min_length=1)] = Field(
        validation_alias="bin-sections",
        serialization_alias="bin-sections",
        description="The use case's binary sections, one for each file of ctx-bins.",
    )


class GenieLora(_Open):
    """The `lora` block of a Genie configuration."""

    version: Literal[1] = Field(description="Version of this layout.")
    alpha_tensor_name: PlainName = Field(
        validation_alias="alpha-tensor-name",
        serialization_alias="alpha-tensor-name",
        description="Name of the graph input that carries the strengths.",
    )
    adapters: Annotated[list[GenieLoraAdapter], Field(min_length=1)] = Field(
        description="The use cases, each with its own name."
    )

    @model_validator(mode="after")
    def _check(self) -> GenieLora:
        raise_problems("GenieLora", _problems(self.adapters))
        return self


class GenieBinary(_Open):
    """Context binaries of a model."""

    lora: GenieLora | None = None


class GenieModel(_Open):
    """The model of an engine."""

    binary: GenieBinary | None = None


class GenieEngine(_Open):
    """An engine."""

    model: GenieModel | None = None


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


# Told apart first, so that a problem in the one form brings no complaint that it is not the other.
_Engines = Annotated[
    Annotated[GenieEngine, Tag("one")] | Annotated[list[GenieEngine], Tag("several")],
    Discriminator(_one_or_several),
]


class GenieDialog(_Open):
    """What an engine, or each of several, works for."""

    engine: _Engines | None = None


class GenieConfig(_Open):
    """A configuration of Genie, or a part of one, as far as its `lora` blocks are concerned."""

    dialog: GenieDialog | None = None
    standalone_engine: GenieDialog | None = Field(
        default=None,
        validation_alias="standalone-engine",
        serialization_alias="standalone-engine",
    )
    text_generator: GenieDialog | None = Field(
        default=None, validation_alias="text-generator", serialization_alias="text-generator"
    )


def _problems(adapters: list[GenieLoraAdapter]) -> Iterator[InitErrorDetails]:
    first = adapters[0]
    names: set[str] = set()
    for index, adapter in enumerate(adapters):
        path: PathParts = ("adapters", index)
        if adapter.name in names:
            yield problem(
                (*path, "name"),
                f"the adapter {adapter.name!r} is listed twice",
                "give each use case its own name",
                adapter.name,
            )
        names.add(adapter.name)
        for place, alpha in enumerate(adapter.alphas):
            if alpha in adapter.alphas[:place]:
                yield problem(
                    (*path, "alphas", place),
                    f"the strength {alpha!r} of adapter {adapter.name!r} is named twice",
                    "give every entry of the strengths' input a name of its own",
                    alpha,
                )
        for key, own, others in (
            ("alphas", adapter.alphas, first.alphas),
            ("bin-sections", adapter.bin_sections, first.bin_sections),
        ):
            if len(own) != len(others):
                yield problem(
                    (*path, key),
                    f"adapter {adapter.name!r} has {len(own)} {key}, {first.name!r} has "
                    f"{len(others)}",
                    "all adapters work on the same graphs: give each as many",
                    own,
                )


def read_genie_lora(path: Path) -> GenieLora:
    """Read a file that holds the `lora` block alone; ConfigError if it is not accepted."""
    return from_document(GenieLora, read_json_located(path))


def read_genie_config(path: Path) -> GenieConfig:
    """Read a Genie configuration, or a part of one; ConfigError if it is not accepted."""
    return from_document(GenieConfig, read_json_located(path))


def genie_blocks(document: Any) -> Iterator[tuple[PathParts, Mapping[str, Any]]]:
    """Every `lora` block of an accepted configuration, with its path inside."""
    for root in GENIE_ROOTS:
        engine = (document.get(root) or {}).get("engine")
        engines = engine if isinstance(engine, list) else [engine]
        for index, part in enumerate(engines):
            path: PathParts = (root, "engine")
            if isinstance(engine, list):
                path = (*path, index)
            for key in _TO_BLOCK:
                part = (part or {}).get(key)
                path = (*path, key)
            if part is not None:
                yield path, part


def in_genie_config(block: GenieLora) -> dict[str, Any]:
    """The block where a dialog's configuration has it, and nothing else beside it."""
    nested: Any = block.model_dump(mode="json", by_alias=True)
    for key in reversed(("dialog", "engine", *_TO_BLOCK)):
        nested = {key: nested}
    return dict(nested)
