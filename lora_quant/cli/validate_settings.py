"""What `lora-quant validate` does: its options where they are given, else the settings file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_quant.cli.typed_paths import is_there, require_typed

if TYPE_CHECKING:
    from lora_quant.config.settings import FoundSettings
    from lora_quant.validation.checked import Validation


@dataclass(frozen=True)
class ValidateOptions:
    """Options as they were typed; None or nothing for those that were not."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: str | None = None
    base: Path | None = None
    jobs: int | None = None
    config: Path | None = None
    no_config: bool = False


def validate_as_asked(paths: Sequence[Path], options: ValidateOptions) -> Validation:
    """Check the paths.

    Raises click.UsageError for a selector that was typed and is unknown, ConfigError or
    InputMissingError for wrong settings or a base that is not there.
    """
    from lora_quant.config.settings import NO_SETTINGS, find_settings, read_settings
    from lora_quant.findings import Severity
    from lora_quant.validation import validate
    from lora_quant.validation.found.exclusion import Exclusion
    from lora_quant.validation.request import Request
    from lora_quant.validation.selection import Selection

    if options.config is not None:
        require_typed(options.config, "settings file")
        found = read_settings(options.config)
    else:
        found = NO_SETTINGS if options.no_config else find_settings(Path())
    settings = found.settings.validation
    selection = Selection(
        _selectors(options.select, settings.select, found, "select"),
        _selectors(options.ignore, settings.ignore, found, "ignore"),
    )
    _check_patterns(found)
    return validate.validate_paths(
        paths,
        Request(base=_base(options, found)),
        selection=selection,
        exclusion=Exclusion(tuple(settings.exclude), found.folder),
        jobs=options.jobs or settings.jobs,
        fail_on=Severity(options.fail_on or settings.fail_on),
    )


def _selectors(
    typed: tuple[str, ...], settings: list[str], found: FoundSettings, key: str
) -> frozenset[str]:
    from lora_quant.errors import ConfigError
    from lora_quant.validation.selection import parse_selectors

    try:
        return parse_selectors(typed or settings)
    except ConfigError as error:
        if typed:
            raise click.BadParameter(
                f"{error.message}: {error.hint}", param_hint=f"--{key}"
            ) from None
        where = found.where(f"validate.{key}")
        raise ConfigError(error.message, where=where, hint=error.hint) from None


def _check_patterns(found: FoundSettings) -> None:
    from lora_quant.errors import ConfigError
    from lora_quant.validation.found.exclusion import check_pattern

    try:
        for pattern in found.settings.validation.exclude:
            check_pattern(pattern)
    except ConfigError as error:
        where = found.where("validate.exclude")
        raise ConfigError(error.message, where=where, hint=error.hint) from None


def _base(options: ValidateOptions, found: FoundSettings) -> Path | None:
    from lora_quant.errors import InputMissingError

    if options.base is not None:
        require_typed(options.base, "base graph")
        return options.base
    if found.settings.validation.base is None:
        return None
    base = found.folder / found.settings.validation.base
    if not is_there(base):
        raise InputMissingError(
            f"the base graph {str(base)!r} does not exist",
            where=found.where("validate.base"),
            hint="a relative path starts at the folder of the settings file",
        )
    return base
