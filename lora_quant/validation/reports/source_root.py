"""The folder that paths in reports are relative to, and paths relative to it.

In CI, what shows a report counts from the root of the checkout, wherever the command ran: so that
root, if the environment names it and the current folder lies in it, else the current folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

_ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


def source_root() -> Path:
    """An absolute folder; links are not followed, as in the paths that people write."""
    here = Path.cwd()
    for name in _ROOTS:
        given = os.environ.get(name, "")
        if given and here.is_relative_to(given):
            return Path(given)
    return here


def below(path: Path, root: Path) -> str | None:
    """`path` relative to `root` with forward slashes; None if it lies elsewhere."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    try:
        return whole.relative_to(root).as_posix()
    except ValueError:
        return None


def percent_encoded(path: str) -> str:
    """A relative path as a URI reference; bytes that are no UTF-8 stay what they are on disk."""
    return quote(os.fsencode(path), safe="/")


def file_uri(path: Path) -> str:
    """An absolute `file:` URI."""
    return Path(os.path.abspath(path)).as_uri()  # noqa: PTH100 - resolve() would follow links
