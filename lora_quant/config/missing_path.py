r"""What may be wrong with a path in a file that leads nowhere.

models\tone.onnx          ->  write / between folders
"models\tone.onnx"        ->  YAML reads \t in double quotes as a tab
models/tome.onnx          ->  did you mean 'tone.onnx'?
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

_NEAR = 0.75  # one letter of four: more apart are other files of the same folder


def spelling_hint(path: Path) -> str | None:
    """What the text of a path shows to be wrong with it, if anything."""
    text = str(path)
    if any(ord(letter) < 32 for letter in text):
        return (
            "the path holds a control character: a backslash in double quotes starts one; write "
            "'/' between folders"
        )
    if os.sep == "/" and "\\" in text:
        return "write '/' between folders: a backslash is a part of a name here"
    return None


def missing_hint(path: Path, otherwise: str) -> str:
    """A hint for a `path` that does not exist; `otherwise` says what holds for any."""
    spelling = spelling_hint(path)
    if spelling is not None:
        return f"{spelling}; {otherwise}"
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return otherwise
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=_NEAR)
    return f"did you mean {near[0]!r}? {otherwise}" if near else otherwise
