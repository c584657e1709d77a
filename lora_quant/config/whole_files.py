"""Files that appear whole or not at all, several of them together: how every -o FILE is written.

Each grows under a hidden name of its own in the folder, `.lora-quant-<16 digits>.part`, is on the
disk before it gets its name, and all of them get their names when the last one is written. A file
that is replaced leaves its permissions to the new one; a link is replaced itself, and what it
points at stays. What a killed process left goes with the next file that is written to the folder;
what a living one is writing is locked.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lora_quant.config.file_lock import Lock, try_lock
from lora_quant.config.output_file import cannot_write_file, check_output_file
from lora_quant.config.renames import Identity, exchange, identity, rename_new
from lora_quant.errors import LoraQuantError

Content = str | Callable[[BinaryIO], object]
"""A text, or a function that writes bytes into the open file it is given."""

_HIDDEN = re.compile(r"\.lora-quant-[0-9a-f]{16}\.part")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_file(path: Path, content: Content, *, force: bool) -> None:
    """Write one file; see `write_files`."""
    write_files({path: content}, force=force)


def write_files(files: Mapping[Path, Content], *, force: bool) -> None:
    """Write files; none of them if one cannot be written. Texts become UTF-8 with Unix line ends.

    Raises PackError as `check_output_file` does, and for what the system refuses; errors of a
    function that writes pass as they are, unless they are OSErrors of the system.
    """
    for path in files:
        check_output_file(path, force=force)
    for folder in {path.absolute().parent for path in files}:
        _remove_stale(folder)
    with ExitStack() as opened:
        grown = []
        for path, content in files.items():
            with _refused(path):
                grown.append(opened.enter_context(_growing(path)))
                _fill(grown[-1], content)
        try:
            for one in grown:
                check_output_file(one.path, force=force)  # its name may be taken by now
                with _refused(one.path):
                    _name(one, force=force)
        except BaseException:
            for one in reversed(grown):
                _take_back(one)
            raise


def _name(grown: _Growing, *, force: bool) -> None:
    if not force:
        rename_new(grown.hidden, grown.path)
    elif not (os.path.lexists(grown.path) and exchange(grown.hidden, grown.path)):
        grown.hidden.replace(grown.path)


def _take_back(grown: _Growing) -> None:
    """Bring back what a file replaced, which has its hidden name where names can be swapped."""
    with contextlib.suppress(OSError):
        if identity(grown.path) != grown.new:
            return
        if os.path.lexists(grown.hidden):
            exchange(grown.hidden, grown.path)
        else:
            grown.path.rename(grown.hidden)


@dataclass(frozen=True)
class _Growing:
    """A file that has no name yet; `new` is what it is told by under any name."""

    path: Path
    hidden: Path
    file: BinaryIO
    new: Identity


@contextmanager
def _growing(path: Path) -> Iterator[_Growing]:
    """A locked file of a hidden name beside `path`; what has that name at the end is removed."""
    while True:
        hidden = path.with_name(f".lora-quant-{secrets.token_hex(8)}.part")
        try:
            with hidden.open("xb") as file:
                lock, status = try_lock(file.fileno()), os.fstat(file.fileno())
                if lock is Lock.BUSY or status.st_nlink == 0:
                    continue  # taken for a stale one before it was locked
                _take_permissions(path, hidden)
                yield _Growing(path, hidden, file, (status.st_dev, status.st_ino))
                return
        finally:
            _discard(hidden)


def _discard(hidden: Path) -> None:
    """Remove a file that may be there; an interrupt is obeyed when it is gone."""
    with contextlib.suppress(OSError):
        try:
            hidden.unlink()
        except KeyboardInterrupt:
            hidden.unlink()
            raise


def _take_permissions(path: Path, hidden: Path) -> None:
    with contextlib.suppress(OSError):
        before = path.lstat()
        if stat.S_ISREG(before.st_mode):
            hidden.chmod(stat.S_IMODE(before.st_mode))


def _fill(grown: _Growing, content: Content) -> None:
    if isinstance(content, str):
        grown.file.write(content.encode())
    else:
        content(grown.file)
    grown.file.flush()
    # Else a power cut after the rename could leave an empty file where the old one was.
    os.fsync(grown.file.fileno())
    if os.name != "posix":
        grown.file.close()  # Windows renames no open file; elsewhere the lock is kept until then


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except LoraQuantError:
        raise  # some of them are OSErrors as well
    except OSError as error:
        raise cannot_write_file(path, error) from error


def _remove_stale(folder: Path) -> None:
    """Remove hidden files whose writers live no more; what cannot be looked at stays."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if _HIDDEN.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | _NO_FOLLOW)
        try:
            unused = try_lock(descriptor) is Lock.OURS
            if unused and os.name == "posix":
                path.unlink()
        finally:
            os.close(descriptor)
        if unused and os.name != "posix":
            path.unlink()  # Windows keeps open files
