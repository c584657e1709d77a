"""The settings of a project: `lora-quant.toml`, or the table `[tool.lora-quant]` of pyproject.toml.

    [validate]                  ->  Settings(validation=ValidateSettings(ignore=["device"]), ...)
    ignore = ["device"]

The nearest such file counts, in the current folder or one around it; settings are not merged.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from lora_quant.config.base_model import ConfigModel, NonEmpty, PathField, from_document
from lora_quant.config.located import LocatedDocument
from lora_quant.config.regular_file import open_regular
from lora_quant.errors import ConfigError, InputMissingError, Where

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_FILE: Final = "lora-quant.toml"
PYPROJECT: Final = "pyproject.toml"
TABLE: Final = "lora-quant"
_MISSPELT = "lora_quant"
MAX_BYTES: Final = 1 << 20

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_NO_CONFIG = "correct it, name another file with --config, or leave it out with --no-config"


class ValidateSettings(ConfigModel):
    """Settings of `lora-quant validate`. Options of the command line win over them."""

    select: list[NonEmpty] = Field(
        default_factory=list, description="Rules, areas or levels to tell of; empty for all."
    )
    ignore: list[NonEmpty] = Field(
        default_factory=list, description="Rules, areas or levels to keep quiet about."
    )
    fail_on: Literal["error", "warning", "note"] = Field(
        default="error", validation_alias="fail-on", description="The least severity that fails."
    )
    base: PathField | None = Field(
        default=None, description="Base graph to hold files against; relative to this file."
    )
    exclude: list[NonEmpty] = Field(
        default_factory=list, description="Glob patterns of files and folders to leave out."
    )
    jobs: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="Number of processes; left out, what is done soonest."
    )


class Settings(ConfigModel):
    """All settings, one table for each command that has any."""

    validation: ValidateSettings = Field(
        default_factory=ValidateSettings,
        validation_alias="validate",
        description="Settings of lora-quant validate.",
    )


@dataclass(frozen=True)
class FoundSettings:
    """Settings and the file that they are from, None where there is none.

    prefix: what stands before the path of a key in that file.
    """

    settings: Settings
    file: Path | None = None
    prefix: str = ""

    def where(self, key: str) -> Where:
        """The place of a key such as `validate.select`."""
        return Where(file=self.file, field=self.prefix + key)

    @property
    def folder(self) -> Path:
        """What relative paths start at."""
        return Path() if self.file is None else self.file.parent


NO_SETTINGS: Final = FoundSettings(Settings())


def find_settings(folder: Path) -> FoundSettings:
    """The settings that hold in a folder. Raises ConfigError if their file is not as it should be.

    In one folder lora-quant.toml comes before pyproject.toml; a pyproject.toml without our table
    does not end the search.
    """
    for place in (folder, *folder.absolute().parents):
        for name in (SETTINGS_FILE, PYPROJECT):
            path = place / name
            if not _is_file(path):
                continue
            found = _settings_in(path, _read_toml(path))
            if found is not None:
                return found
    return NO_SETTINGS


def read_settings(path: Path) -> FoundSettings:
    """The settings of a file that was named.

    Raises InputMissingError if it cannot be read, ConfigError if it holds no settings of ours or
    wrong ones.
    """
    found = _settings_in(path, _read_toml(path))
    if found is None:
        raise ConfigError(
            f"there is no table [tool.{TABLE}]",
            where=Where(file=path),
            hint=f"add one, or name a {SETTINGS_FILE}",
        )
    return found


def _settings_in(path: Path, value: dict[str, Any]) -> FoundSettings | None:
    """None for a pyproject.toml that says nothing about us."""
    prefix = ""
    if path.name == PYPROJECT:
        tools = value.get("tool")
        if isinstance(tools, Mapping) and _MISSPELT in tools:
            raise ConfigError(
                f"the table [tool.{_MISSPELT}] is read by nobody",
                where=Where(file=path, field=f"tool.{_MISSPELT}"),
                hint=f"write it with a hyphen: [tool.{TABLE}]",
            )
        if not isinstance(tools, Mapping) or TABLE not in tools:
            return None
        value, prefix = tools[TABLE], f"tool.{TABLE}."
    try:
        settings = from_document(Settings, LocatedDocument(value, source=path))
    except ConfigError as error:
        where = replace(error.where, field=f"{prefix}{error.where.field or ''}".rstrip(".") or None)
        raise ConfigError(error.message, where=where, hint=error.hint) from None
    return FoundSettings(settings, path, prefix)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputMissingError(
            f"the settings cannot be read: {error.strerror or error}",
            where=Where(file=path),
            hint=_NO_CONFIG,
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"the file has more than {MAX_BYTES:,} bytes", where=Where(file=path), hint=_NO_CONFIG
        )
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise ConfigError(
            "the lists or tables are nested too deeply", where=Where(file=path), hint=_NO_CONFIG
        ) from None
    except ValueError as error:  # not UTF-8, not TOML, or a number that is too long
        text = str(error)
        place = _PLACE.search(text)
        line, column = place.groups() if place else (None, None)
        raise ConfigError(
            f"the text is not TOML: {_PLACE.sub('', text)}",
            where=Where(
                file=path, line=int(line) if line else None, column=int(column) if column else None
            ),
            hint=_NO_CONFIG,
        ) from None


def _is_file(path: Path) -> bool:
    """Whether something is there that was meant to be read; a broken link is no settings file."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
