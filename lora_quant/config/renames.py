"""Renames that Python has no function for: two names swapped at once, and a name that is new.

exchange(a, b)      a, b -> b, a             one step where Linux offers it
rename_new(a, b)    a -> b                   never replaces a file
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Identity = tuple[int, int]
"""Device and number of a file or folder, which a rename does not change."""

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
# What kernels and file systems say that do not know the flags.
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def identity(path: Path) -> Identity | None:
    """What a file or folder is told by; None if nothing has the name, or nothing can have it."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return status.st_dev, status.st_ino


def exchange(first: Path, second: Path) -> bool:
    """Swap two names, both of which exist; false, and nothing was done, where that is not offered.

    Raises OSError for what a rename would fail for as well.
    """
    return _renameat2(first, second, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file to a name that nothing has; FileExistsError if something has it.

    Where the system cannot do both at once, a name that is taken between the two steps is replaced.
    """
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    function = _function()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _function() -> Callable[..., Any] | None:
    """The C library's renameat2, if it has one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., Any] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    return function
