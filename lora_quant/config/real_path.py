"""Whether two paths name one file: links followed, `.` and `..` resolved."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: Path) -> Path:
    """The absolute path without links; a link that leads in a circle stays as it is.

    `Path.resolve` raises RuntimeError there, in some versions of Python, before anybody could say
    which file of the configuration it is.
    """
    return Path(os.path.realpath(path))
