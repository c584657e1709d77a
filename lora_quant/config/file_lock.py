"""An advisory lock on an open file, which ends with the process that holds it, however it ends.

What a killed process left behind is told from what a living one is writing by trying its lock.
"""

from __future__ import annotations

import errno
import sys
from enum import Enum

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Lock(Enum):
    """What became of an attempt to lock."""

    OURS = "ours"
    """Held until the file is closed."""
    BUSY = "busy"
    """A living process holds it, maybe this one."""
    NONE = "none"
    """The file system has no locks."""


def try_lock(descriptor: int) -> Lock:
    """Lock an open file without waiting."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.BUSY if error.errno in _BUSY else Lock.NONE
    return Lock.OURS
