"""Moving finished files and folders into place, so that each step can be told and taken back.

    nothing at `final`     waiting -> final
    something at `final`   both swap names at once, where the system offers it; elsewhere
                           final -> retired, waiting -> final
    to be removed          final -> retired

`new` is the identity of what waits: whether a step was done is seen from the file system alone, by
another process as well, after this one was killed between any two renames.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.renames import Identity, exchange, identity, rename_new

# What file systems say that do not flush folders.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Step:
    """One name that is published. `new` is None for a name that is to be removed.

    `replaces` tells whether something may be there.
    """

    waiting: Path
    final: Path
    new: Identity | None
    replaces: bool = True

    @property
    def retired(self) -> Path:
        """Where the old one goes if it cannot swap names with the new one."""
        return self.waiting.with_name(f"{self.waiting.name}.old")


def do(step: Step) -> None:
    """Take a step; OSError if it cannot be taken, maybe after its first half."""
    if step.new is None:
        step.final.rename(step.retired)
    elif not step.replaces or not os.path.lexists(step.final):
        rename_new(step.waiting, step.final)
    elif not exchange(step.waiting, step.final):
        step.final.rename(step.retired)
        step.waiting.rename(step.final)


def undo(step: Step) -> None:
    """Bring back what was there before a step, if it was taken or half taken."""
    if step.new is not None and identity(step.final) == step.new:
        if os.path.lexists(step.retired) or not os.path.lexists(step.waiting):
            step.final.rename(step.waiting)
        else:
            exchange(step.waiting, step.final)
    if os.path.lexists(step.retired) and not os.path.lexists(step.final):
        step.retired.rename(step.final)


def discard(step: Step) -> None:
    """Remove what a step leaves under hidden names, once it is done or undone."""
    for path in (step.waiting, step.retired):
        # Not `path.is_dir`: it raises OSError for a name that is too long.
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def sync_folders(root: Path) -> None:
    """Have the names in a folder and below on the disk; OSError if the disk fails."""
    for folder, _, _ in os.walk(root):
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Have the names in one folder on the disk, where the system offers that for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # as on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
