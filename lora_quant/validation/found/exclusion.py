"""Patterns of files that are left out when a folder is looked through.

Exclusion(("drafts", "old/**/*.json"), folder) leaves out everything named drafts, at any depth, and
the JSON files below folder/old.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_quant.errors import ConfigError


@dataclass(frozen=True)
class Exclusion:
    """Glob patterns with `*`, `?`, `[...]`, and `**` for any number of folders.

    A pattern without a slash is held against every name; one with a slash against paths below
    `folder`. A folder that matches is left out with all that it holds.
    """

    patterns: tuple[str, ...] = ()
    folder: Path = Path()

    def matches(self, real: str) -> bool:
        """Whether the file or folder at this path is left out; links in the path are resolved."""
        if not self.patterns:
            return False
        name = real.rpartition(os.sep)[2]
        if self._names is not None and self._names.fullmatch(name):
            return True
        if self._paths is None:
            return False
        root = self._root
        posix = Path(real).as_posix()
        return posix.startswith(root) and bool(self._paths.fullmatch(posix[len(root) :]))

    @cached_property
    def _root(self) -> str:
        return self.folder.resolve().as_posix().rstrip("/") + "/"

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        return _any_of([p.rstrip("/") for p in self.patterns if "/" not in p.rstrip("/")])

    @cached_property
    def _paths(self) -> re.Pattern[str] | None:
        return _any_of([p.strip("/") for p in self.patterns if "/" in p.rstrip("/")])


def check_pattern(pattern: str) -> None:
    """Raises ConfigError if a pattern can match nothing."""
    if not pattern.strip("/"):
        raise ConfigError(
            f"the pattern {pattern!r} matches nothing",
            hint="write the name of a file or a folder, or a path with * or **",
        )
    if ".." in pattern.split("/"):
        raise ConfigError(
            f"the pattern {pattern!r} matches nothing: it leads out of its folder",
            hint="write paths below the folder of the settings file",
        )


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    return re.compile("|".join(f"(?:{_regex(pattern)})" for pattern in patterns), re.DOTALL)


def _regex(pattern: str) -> str:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    text = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            text += ".*" if last else "(?:[^/]+/)*"
        else:
            text += _segment(part) + ("" if last else "/")
    return text


def _segment(part: str) -> str:
    """A name's pattern; a bracket that is never closed is a plain character."""
    text = ""
    index = 0
    while index < len(part):
        character = part[index]
        end = part.find("]", index + 2) if character == "[" else -1
        if end > 0:
            body = part[index + 1 : end]
            negated = body.startswith("!")
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", body.removeprefix("!"))
            text += f"[{'^' if negated else ''}{inside}]"
            index = end
        elif character == "*":
            text += "[^/]*"
        elif character == "?":
            text += "[^/]"
        else:
            text += re.escape(character)
        index += 1
    return text
