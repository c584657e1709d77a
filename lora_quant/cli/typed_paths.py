"""Paths that a person typed: what is wrong with them is said in terms of the command line."""

from __future__ import annotations

from pathlib import Path

from lora_quant.errors import InputMissingError, Where

TYPED_HINT = (
    "the path is used as given on the command line; a relative one starts at the current folder"
)


def require_typed(path: Path | None, what: str) -> None:
    """Raise InputMissingError if a path is given where nothing is."""
    if path is not None and not is_there(path):
        raise InputMissingError(
            f"the {what} does not exist", where=Where(file=path), hint=TYPED_HINT
        )


def is_there(path: Path) -> bool:
    """Whether the path may lead to something; what may not be looked at is left to its reader."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True
