"""Text files that appear whole or not at all, several of them together.

Each grows under a hidden name of its own beside the file, and takes its name when all are written.
Whatever had the name is replaced: a link itself and not what it points at, a FIFO without waiting.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def replace_texts(texts: Mapping[Path, str]) -> None:
    """Write texts as UTF-8 with Unix line ends; none of them if one cannot be written.

    Raises OSError, with the file that was to be written as its `filename`.
    """
    partial: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            partial[path] = path.with_name(f".lora-quant-{secrets.token_hex(8)}")
            with _naming(path):
                _write(partial[path], text, path)
        for path, hidden in partial.items():
            with _naming(path):
                hidden.replace(path)
    finally:
        for hidden in partial.values():
            hidden.unlink(missing_ok=True)


def _write(hidden: Path, text: str, path: Path) -> None:
    # The last steps cannot be taken back: what can be known to fail then fails now.
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with hidden.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
