"""The text of an encodings file, entry by entry, so that a large file is never built in memory.

One entry stands on one line; keys are in alphabetical order, as AIMET writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Made once: json.dumps would make one for each of some thousand values.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True)


@dataclass(frozen=True)
class Section:
    """A member whose value is a list of entries or, if `keyed`, an object name -> entry."""

    keyed: bool
    entries: Iterable[tuple[str, str]]


def value_text(value: Any) -> str:
    """A JSON value on one line, keys in alphabetical order."""
    return _ENCODER.encode(value)


def object_text(members: Mapping[str, str]) -> str:
    """An object on one line out of the texts of its members, keys in alphabetical order."""
    return "{" + ", ".join(f'"{key}": {members[key]}' for key in sorted(members)) + "}"


def list_text(array: NDArray[np.float64], *, whole: bool = False) -> str:
    """An array as nested lists of floats, or of integers if `whole`.

    A constant array (the offsets of a symmetric weight) is repeated instead of formatted.
    """
    if array.ndim == 1 and array.size > 1 and (array == array[0]).all():
        one = value_text(int(array[0]) if whole else float(array[0]))
        return "[" + ", ".join([one] * array.size) + "]"
    if whole:
        return value_text(array.astype(np.int64).tolist())
    return value_text(array.tolist())


def document_text(members: Iterable[tuple[str, str | Section]]) -> Iterator[str]:
    """Pieces of the document's text, ending with a line break; members in the given order."""
    yield "{"
    separator = "\n"
    for key, member in members:
        yield f"{separator} {value_text(key)}: "
        separator = ",\n"
        if isinstance(member, str):
            yield member
        else:
            yield from _section_text(member)
    yield "\n}\n" if separator == ",\n" else "}\n"


def _section_text(section: Section) -> Iterator[str]:
    yield "{" if section.keyed else "["
    separator = "\n"
    for name, text in section.entries:
        yield (
            f"{separator}  {value_text(name)}: {text}" if section.keyed else f"{separator}  {text}"
        )
        separator = ",\n"
    if separator == ",\n":
        yield "\n "
    yield "}" if section.keyed else "]"
