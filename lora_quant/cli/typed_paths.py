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


def require_pack(folder: Path) -> None:
    """Raise InputMissingError unless the folder holds a pack."""
    from lora_quant.config.manifest import MANIFEST_FILE

    require_typed(folder, "folder of the pack")
    if not is_there(folder / MANIFEST_FILE):
        raise InputMissingError(
            f"the folder is not a pack: it has no {MANIFEST_FILE}",
            where=Where(file=folder),
            hint="give the folder that `lora-quant build -o` wrote",
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
