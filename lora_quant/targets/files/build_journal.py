"""The journal of a build: a locked file beside the output that says what a killed build left.

    .OUT.lora-quant                                 {"tag": "5f0c9a13"}
    .OUT.5f0c9a13.part/                             {"beside": "../model/model.OUT.onnx"}
    ../model/.model.OUT.onnx.OUT.5f0c9a13.part      {"publishing": {"": [2049, 17], ...}}

The lock ends with the process, however it ends. Who gets it is the only living writer of the
output, and takes back or cleans up what the journal tells of first. Files are removed under hidden
names of this form alone, whatever the journal says. A file system without locks gets no journal:
there, what a killed build left stays.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_quant.config.file_lock import Lock, try_lock
from lora_quant.config.publishing import Step, discard, do, undo
from lora_quant.config.renames import Identity, identity
from lora_quant.errors import LoraQuantError, PackError, Where
from lora_quant.graph.files.model_check import stand_in_for
from lora_quant.targets.files.pack_folder import cannot_write
from lora_quant.targets.files.waiting_names import staging_folder, waiting_name

_MAX_BYTES = 1 << 20
_TAG = re.compile(r"[0-9a-f]{8}")
_OUTPUT = ""
"""The name of the output itself among what is published."""


class BuildJournal:
    """What one build puts beside its output until it is published, and what it publishes."""

    def __init__(self, output: Path) -> None:
        """Lock the output, and clean up after a build that was killed.

        Raises PackError if somebody else is writing the output, or the folder is read-only.
        """
        self.staging = staging_folder(output, secrets.token_hex(4))
        self._output = output
        self._path = output.with_name(f".{output.name}.lora-quant")
        self._beside: list[Path] = []
        self._steps: Sequence[Step] = ()
        self._descriptor: int | None = None
        self._closed = False
        self._owner = os.getpid()
        try:
            self._lock()
            self._recover()
            self._say({"tag": _tag_of(self.staging)})
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError) and not isinstance(error, LoraQuantError):
                raise cannot_write(self._path, error) from error
            raise

    def announce(self, final: Path) -> None:
        """Say that a file will wait beside `final`; OSError if that cannot be written."""
        final = _plain(final)
        self._say({"beside": os.path.relpath(final, self._output.parent)})
        self._beside.append(final)

    def publish(self, replaceable: Iterable[Path], stale: Iterable[Path]) -> None:
        """Move everything into place, the output last; OSError if a step cannot be taken.

        `replaceable` are files beside the base that may be replaced, `stale` those to remove. What
        is half published is taken back by `close`.
        """
        known = frozenset(map(_plain, replaceable))
        steps = [self._step(final, replaces=final in known) for final in self._beside]
        removals = [Step(waiting_name(final, self.staging), final, None) for final in stale]
        output = Step(self.staging, self._output, identity(self.staging))
        self._steps = (*steps, *removals, output)
        news = {self._name(step.final): step.new for step in self._steps}
        self._say({"publishing": news}, sync=True)
        for step in self._steps:
            do(step)

    def close(self) -> None:
        """Take back what is half published, remove what is hidden, and unlock."""
        if self._closed or os.getpid() != self._owner:
            return  # a forked child has the journal of its parent as well
        waiting = [Step(self.staging, self._output, None), *map(self._step, self._beside)]
        settle(self._steps, waiting)
        self._unlock()
        self._closed = True

    def _step(self, final: Path, *, replaces: bool = True) -> Step:
        waiting = waiting_name(final, self.staging)
        return Step(waiting, final, identity(waiting), replaces)

    def _name(self, final: Path) -> str:
        return _OUTPUT if final == self._output else os.path.relpath(final, self._output.parent)

    def _lock(self) -> None:
        """Open and lock the journal; on a file system without locks there is none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while self._descriptor is None:
            descriptor = os.open(self._path, flags, 0o666)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EEXIST, "no regular file", str(self._path))
                lock = try_lock(descriptor)
                if lock is Lock.BUSY:
                    raise PackError(
                        "another process is writing this folder right now",
                        where=Where(file=self._output),
                        hint="wait until it is done, or choose another output folder",
                    )
                if lock is Lock.NONE:
                    self._path.unlink()
                    return
                # Its last owner may have been done, and removed it, between our two steps.
                if identity(self._path) == (status.st_dev, status.st_ino):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def _recover(self) -> None:
        """Settle what an earlier build told before it was killed."""
        if self._descriptor is None:
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)  # Windows has no os.pread
        told = _told(os.read(self._descriptor, _MAX_BYTES).decode("utf-8", "replace"))
        tag = told.get("tag")
        if isinstance(tag, str) and _TAG.fullmatch(tag):
            staging = staging_folder(self._output, tag)
            news = _identities(told.get("publishing"))
            steps = []
            for name, new in news.items():
                final = self._final(name)
                waiting = staging if name == _OUTPUT else waiting_name(final, staging)
                steps.append(Step(waiting, final, new))
            finals = [self._final(name) for name in told["beside"]]
            waits = [Step(waiting_name(final, staging), final, None) for final in finals]
            settle(steps, [Step(staging, self._output, None), *waits])
        os.ftruncate(self._descriptor, 0)

    def _final(self, name: str) -> Path:
        return _plain(self._output.parent / name) if name else self._output

    def _say(self, record: dict[str, Any], *, sync: bool = False) -> None:
        if self._descriptor is None:
            return
        line = json.dumps(record).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if sync:
            os.fsync(self._descriptor)

    def _unlock(self) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if os.name == "posix":  # while it is locked, so that nobody else's is removed
                self._path.unlink()
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)
        with contextlib.suppress(OSError):
            if os.name != "posix":  # Windows removes no open file, another's neither
                self._path.unlink()


def settle(steps: Sequence[Step], waiting: Iterable[Step]) -> None:
    """Make the state after a build the old or the new one, and remove what is hidden.

    `steps` end with that of the output: once it is taken, all are. OSError if the old state cannot
    be brought back; then nothing is removed.
    """
    if steps and identity(steps[-1].final) != steps[-1].new:
        for step in reversed(steps):
            undo(step)
    for step in (*steps, *waiting):
        discard(step)
        with contextlib.suppress(OSError):  # of a graph whose check was killed
            stand_in_for(step.waiting).unlink()


def _plain(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _tag_of(staging: Path) -> str:
    return staging.name.split(".")[-2]


def _told(text: str) -> dict[str, Any]:
    """What the lines of a journal say together; the last one may be torn."""
    told: dict[str, Any] = {}
    beside: list[str] = []
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            break
        name = record.pop("beside", None)
        if isinstance(name, str) and "\0" not in name:
            beside.append(name)
        told |= record
    return told | {"beside": beside}


def _identities(record: Any) -> dict[str, Identity | None]:
    """Name -> identity, the output last; nothing if the record is not whole."""
    if not isinstance(record, dict) or _OUTPUT not in record:
        return {}
    result: dict[str, Identity | None] = {}
    for name, new in record.items():
        if new is not None and not (
            isinstance(new, list) and [type(part) for part in new] == [int, int]
        ):
            return {}
        result[name] = None if new is None else (new[0], new[1])
    result[_OUTPUT] = result.pop(_OUTPUT)
    return result if result[_OUTPUT] is not None and "\0" not in "".join(result) else {}
