"""Entries that only the device compiler knows, in files that are written before it has run.

<FILL IN: what belongs here>      no path on Windows, and nobody's path elsewhere
"""

from __future__ import annotations

from typing import Final

_BEGIN: Final = "<FILL IN"


def placeholder(what: str) -> str:
    """The entry that stands for `what` until a person fills it in."""
    return f"{_BEGIN}: {what}>"


def is_placeholder(text: str) -> bool:
    """Whether an entry is not filled in yet, or not all of it."""
    return _BEGIN in text
