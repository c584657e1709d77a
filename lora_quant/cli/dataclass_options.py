"""Command-line options that derive from the fields of an options dataclass.

A field's name, default, type and metadata (`help`, and `metavar` where the type says too little)
become the option, so that the command line, its help and the Python API cannot drift apart.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

F = TypeVar("F", bound=Callable[..., Any])

# Fields whose option is shorter than the field's name, which says it in the plural.
_OPTION_NAMES = {"targets": "target", "dims": "dim"}


def option_name(field: str) -> str:
    """The option of a field as a person types it: `weight_bits` -> `--weight-bits`."""
    return "--" + _OPTION_NAMES.get(field, field).replace("_", "-")


def off_option(field: str) -> str:
    """What turns a field off that is on by default: `check_stages` -> `--no-check-stages`."""
    return "--no-" + option_name(field).removeprefix("--")


def options_of(dataclass: type[Any]) -> Callable[[F], F]:
    """A decorator that adds one option per field; values arrive under the fields' names."""
    hints = get_type_hints(dataclass)

    def decorate(function: F) -> F:
        for field in reversed(fields(dataclass)):
            settings = _settings(hints[field.name], field.default)
            declared = option_name(field.name)
            if settings.get("is_flag") and field.default:
                declared = f"{declared}/{off_option(field.name)}"
            settings["metavar"] = field.metadata.get("metavar")
            option = click.option(declared, field.name, help=field.metadata["help"], **settings)
            function = option(function)
        return function

    return decorate


def _settings(hint: Any, default: Any) -> dict[str, Any]:
    """Click's description of a type: bool, int, str, Literal, an optional one, tuple of str."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(part for part in get_args(hint) if part is not type(None))
        return {**_settings(inner, None), "show_default": False}
    settings = {"default": default, "show_default": True}
    if get_origin(hint) is Literal:
        return {**settings, "type": click.Choice(list(get_args(hint)))}
    if get_origin(hint) is tuple:
        return {**settings, "multiple": True}
    if hint is bool:
        return {**settings, "is_flag": True}
    return {**settings, "type": hint}
