"""A document's value together with the line and column of each of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where

Position = tuple[int, int]


@dataclass(frozen=True)
class LocatedDocument:
    """`positions` maps a path such as `("use-case", 0, "name")` to its (line, column), 1-based.

    An entry of an object is located at its key, an item of a list at its start. What came through
    a YAML alias has no positions of its own.
    """

    value: Any
    positions: dict[PathParts, Position] = field(default_factory=dict)
    source: Path | None = None

    def position(self, path: PathParts) -> Position | None:
        """The position of `path`, or of the nearest part around it that is known."""
        for length in range(len(path), -1, -1):
            found = self.positions.get(path[:length])
            if found is not None:
                return found
        return None

    def where(self, path: PathParts = (), **more: Any) -> Where:
        """File, line and column of `path` as a `Where`; `more` are further parts of it."""
        line, column = self.position(path) or (None, None)
        return Where(file=self.source, line=line, column=column, **more)


def path_text(path: PathParts) -> str:
    """A path the way a person reads it: `use-case[0].adapter_alphas[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
