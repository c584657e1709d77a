"""What may be in a document: null, bool, int, finite float, text, lists and text-keyed objects."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

PathParts = tuple[str | int, ...]

MAX_DEPTH = 64
"""No file of ours or of our neighbours nests deeper than ten."""


@dataclass(frozen=True)
class Fault:
    """The first thing in a value that a document may not hold, and its path."""

    path: PathParts
    problem: str


MAX_WHOLE = 2**64 - 1
"""No field of any file needs more bits, and longer numbers cannot be printed or made floats."""


def too_large() -> str:
    """The problem text for a whole number beyond the bound, the same for YAML and JSON."""
    return "a whole number has more than 64 bits"


def too_deep() -> str:
    """The problem text for nesting beyond the bound, the same for YAML and JSON."""
    return f"nested deeper than the {MAX_DEPTH} levels that are accepted"


def find_fault(value: Any) -> Fault | None:
    """The first fault of a value in no particular order, or None.

    Iterative, and scalars are looked at inside the loop over their container: an encodings file
    holds millions of floats.
    """
    if type(value) not in (dict, list, tuple):
        problem = _scalar_problem(value)
        return None if problem is None else Fault((), problem)
    stack: list[tuple[Any, PathParts]] = [(value, ())]
    while stack:
        container, path = stack.pop()
        if len(path) >= MAX_DEPTH:
            return Fault(path, too_deep())
        if type(container) is dict:
            for key in container:
                if type(key) is not str:
                    return Fault(path, f"the key {key!r} is not text")
                if not key.isascii() and (problem := _text_problem(key)):
                    return Fault(path, problem)
            items: Any = container.items()
        else:
            # Lists of a million floats: two passes in C. A sum may overflow where no item does.
            if set(map(type, container)) == {float} and isfinite(sum(container)):
                continue
            items = enumerate(container)
        for key, item in items:
            kind = type(item)
            if kind is float:
                if isfinite(item):
                    continue
            elif kind is dict or kind is list or kind is tuple:
                stack.append((item, (*path, key)))
                continue
            problem = _scalar_problem(item)
            if problem is not None:
                return Fault((*path, key), problem)
    return None


def _scalar_problem(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return None if value.isascii() else _text_problem(value)
    if kind is float:
        return None if isfinite(value) else "NaN and infinity are not accepted"
    if kind is int:
        return None if -MAX_WHOLE <= value <= MAX_WHOLE else too_large()
    if value is None or kind is bool:
        return None
    return f"a value of type {kind.__name__} has no place in a document"


def _text_problem(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"the text {text!r} holds a lone surrogate, which has no UTF-8 form"
    return None
