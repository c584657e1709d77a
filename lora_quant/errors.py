"""The closed tree of errors that a user can meet.

Every error says what was got, what was expected, where, and what to do. Wrong user data is never
an AssertionError, a KeyError or a traceback; only a defect of ours leaves this tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

MOST_MESSAGE = 4000
MOST_NAME = 300
MOST_PLACE = 4096
"""Characters of a message, and of a name or a path in it: files can hold names of any length."""


@dataclass(frozen=True)
class Where:
    """The place that an error or a finding speaks of; every part is optional."""

    file: Path | None = None
    line: int | None = None
    column: int | None = None
    field: str | None = None
    use_case: str | None = None
    adapter: str | None = None
    module: str | None = None
    tensor: str | None = None
    node: str | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else str(self.file)
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        parts = [place] if place else []
        for name in ("field", "use_case", "adapter", "module", "tensor", "node"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name.replace('_', ' ')} {short(value, most=MOST_NAME)}")
        return ", ".join(parts)

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self))

    def as_dict(self) -> dict[str, str | int]:
        """The parts that are set, as JSON values (paths with forward slashes)."""
        result: dict[str, str | int] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                if isinstance(value, Path):
                    value = value.as_posix()
                result[f.name] = value if isinstance(value, int) else cut(value, most=MOST_PLACE)
        return result


_MOST_COMPARED = 2_000_000
_LEAST_COMPARED = 1000
"""Pairs of letters for one hint: two thousand names of usual length."""

NOWHERE = Where()


class LoraQuantError(Exception):
    """Root of the tree. `code` is stable and documented; `hint` says what to do next."""

    code: ClassVar[str] = "LQ000"

    def __init__(self, message: str, *, where: Where = NOWHERE, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = cut(message, most=MOST_MESSAGE)
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f"\n  where: {self.where}"
        if self.hint:
            text += f"\n  hint:  {self.hint}"
        return text


class ConfigError(LoraQuantError, ValueError):
    """A configuration, or any YAML or JSON document, cannot be taken as it is."""

    code = "LQ100"

    parts: tuple[ConfigError, ...] = ()
    """The problems of a document one by one, where the message lists them with their fields."""


class InputMissingError(LoraQuantError, FileNotFoundError):
    """A file that was named does not exist or cannot be read."""

    code = "LQ110"


class AdapterError(LoraQuantError):
    """An adapter checkpoint is damaged, contradicts itself or does not fit the graph."""

    code = "LQ200"


class UnsupportedAdapterError(AdapterError):
    """An adapter is of a kind, or sets a field, that is refused rather than approximated."""

    code = "LQ210"


class GraphError(LoraQuantError):
    """The base graph cannot be read, or cannot take the branches that were asked for."""

    code = "LQ300"


class AttachPointError(GraphError):
    """A requested module finds no node, or more than one."""

    code = "LQ310"


class EncodingsError(LoraQuantError):
    """An encodings file is malformed, or its encodings cannot be merged as asked."""

    code = "LQ400"


class PackError(LoraQuantError):
    """An output cannot be written."""

    code = "LQ500"


class PackDefectError(PackError):
    """What was written fails its own checks: a defect of lora-quant or of a plugin."""

    code = "LQ510"


class VerificationError(LoraQuantError):
    """A pack cannot be run, or its result is farther from the reference than the tolerance."""

    code = "LQ600"


class PluginError(LoraQuantError):
    """A plugin does not fulfil its contract, or two plugins claim one name."""

    code = "LQ700"


def did_you_mean(name: str, accepted: Iterable[str], *, most: int = 5) -> str:
    """A hint that lists the accepted names closest to `name`, or all of them if they are few."""
    names = sorted(accepted)
    if not names:
        return "there are none to choose from"
    near = difflib.get_close_matches(name, _comparable(name, names), n=most, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f"known: {some(names, most=most)}"


def _comparable(name: str, names: Iterable[str]) -> Iterator[str]:
    """The first names that can be compared with `name` in little time."""
    left = _MOST_COMPARED
    # Comparing takes the product of the lengths, and nobody misspells names of such a length.
    for known in names if len(name) <= MOST_NAME else ():
        if len(known) <= MOST_NAME:
            left -= max(len(name) * len(known), _LEAST_COMPARED)
            if left < 0:
                return
            yield known


def some(names: Sequence[str], *, total: int | None = None, most: int = 5) -> str:
    """The first of many names, quoted, and how many there are beyond; `total` of them in all."""
    shown = names[:most]
    more = (len(names) if total is None else total) - len(shown)
    return ", ".join(short(name, most=MOST_NAME) for name in shown) + (
        f" and {more} more" if more > 0 else ""
    )


def short(value: object, *, most: int = 80) -> str:
    """A value as a message shows it: files can hold values of any length."""
    if isinstance(value, str | bytes):
        value = value[: most + 1]
    return cut(repr(value), most=most)


def cut(text: str, *, most: int) -> str:
    """The start of a text, of at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
