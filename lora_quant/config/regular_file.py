"""Opening a file that somebody named, so that nobody waits at it and nothing is read without end.

A pipe would be waited for until somebody writes into it, a device read for ever, and opening some
of them does something. So the file is opened without waiting, and what was opened is asked what it
is: between a question and a later opening, another file could have taken the name.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path

# Where a shell puts the pipes that it hands over, as for <(command).
_HANDED_OVER = (("dev",), ("proc",))
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, handed_over: bool = False) -> FileIO:
    """The file at `path`, open for reading, unbuffered; the caller closes it.

    OSError as `open` raises it, and with a `strerror` that says what it is if it is no regular
    file, or that no file can have its name. With `handed_over`, a pipe that a shell has opened
    already is taken as well.
    """
    opener = None if handed_over and path.parts[1:2] in _HANDED_OVER else _opener
    try:
        return FileIO(path, "rb", opener=opener)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def _opener(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a folder is refused by who opens it
        return descriptor
    os.close(descriptor)
    what = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise OSError(errno.EINVAL, f"expected a file, got {what}", path)
