"""Where a file that a person names may be written: the same rules and words for every command.

nothing there, in a folder      written
a regular file, a link to one   replaced with --force; of a link, the link and not its target
a link to nothing               replaced with --force
a write-protected file          refused
a folder, device, pipe, socket  refused, and a link to one
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lora_quant.errors import PackError, Where

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_output_file(path: Path, *, force: bool) -> None:
    """Raise PackError if `path` cannot be written, or is there and `force` is not given."""
    where = Where(file=path)
    try:
        there = _status(path)
        if there is None and not path.absolute().parent.is_dir():
            raise PackError(
                "the folder of the output file does not exist",
                where=where,
                hint="make the folder, or choose another file",
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        if isinstance(error, PackError):
            raise
        raise cannot_write_file(path, error) from error
    if there is None:
        return
    for is_kind, name in _KINDS:
        if is_kind(there.st_mode):
            raise PackError(
                f"the output file is {name}, which is never replaced",
                where=where,
                hint="choose another file",
            )
    if not force:
        raise PackError(
            "the output file exists",
            where=where,
            hint="add --force to replace it, or choose another file",
        )
    if stat.S_ISREG(there.st_mode) and not os.access(path, os.W_OK):
        raise PackError(
            "the output file is write-protected, and is not replaced, not even with --force",
            where=where,
            hint="choose another file, or change its permissions",
        )


def cannot_write_file(path: Path, error: Exception) -> PackError:
    """The error for a file that the system does not let us write."""
    reason = getattr(error, "strerror", None) or str(error)
    return PackError(
        f"cannot write: {reason}",
        where=Where(file=path),
        hint="check permissions and free space, or choose another file",
    )


def _status(path: Path) -> os.stat_result | None:
    """Of what a link leads to, or of the link if that is nothing; None if nothing is there."""
    try:
        return path.stat() if path.exists() else path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
