"""The folder that a pack grows in, out of sight, until it is complete.

Files are written into a hidden folder beside the output, hashed as they are written, and appear
by one rename. A build that fails or is interrupted leaves the old output, or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lora_quant.errors import PackError, Where
from lora_quant.graph.data_files import copy_with_sha256

MANIFEST = "pack.json"


@dataclass(frozen=True)
class PackedFile:
    """One finished file; `path` is relative to the pack, with forward slashes.

    `role` tells what it is (see lora_quant.config.manifest_records.PackFile), `use_case` whose.
    """

    path: str
    target: str
    role: str
    use_case: str | None
    size: int
    sha256: str


class HashingWriter:
    """A binary file that knows the size and the hash of what went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def sha256(self) -> str:
        """Hash of everything written so far."""
        return self._digest.hexdigest()


@dataclass
class PackFolder:
    """Writes the files of one pack into `root`; `files` records them by path.

    `target` is the name of the target that is writing. `neighbours` are finished files that belong
    into another folder (the base's, with --beside-base): where they wait and where they go.
    """

    root: Path
    output: Path
    target: str = ""
    files: dict[str, PackedFile] = field(default_factory=dict)
    neighbours: list[tuple[Path, Path]] = field(default_factory=list)

    @contextlib.contextmanager
    def create(self, path: str, role: str, use_case: str | None = None) -> Iterator[HashingWriter]:
        """A new file of the pack at a relative path."""
        target = self._target(path)
        try:
            with target.open("wb") as file:
                writer = HashingWriter(file)
                yield writer
        except OSError as error:
            raise _cannot_write(target, error) from error
        self.files[path] = self._packed(path, role, use_case, writer.size, writer.sha256())

    def write_text(self, path: str, role: str, text: str, use_case: str | None = None) -> None:
        """A whole text file, UTF-8, line ends as given."""
        with self.create(path, role, use_case) as writer:
            writer.write(text.encode())

    def copy(self, path: str, role: str, source: Path) -> None:
        """A copy of a large file, hashed on the way."""
        target = self._target(path)
        digest = copy_with_sha256(source, target)
        self.files[path] = self._packed(path, role, None, target.stat().st_size, digest)

    @contextlib.contextmanager
    def create_neighbour(self, final: Path, role: str) -> Iterator[HashingWriter]:
        """A new file outside the pack, beside the base; it appears together with the pack."""
        waiting = final.with_name(f".{final.name}.{self.root.name}")
        path = self.relative(final)
        self.neighbours.append((waiting, final))
        try:
            with waiting.open("wb") as file:
                writer = HashingWriter(file)
                yield writer
        except OSError as error:
            raise _cannot_write(final, error) from error
        self.files[path] = self._packed(path, role, None, writer.size, writer.sha256())

    def relative(self, path: Path) -> str:
        """A path as seen from the finished pack, with forward slashes."""
        try:
            return Path(os.path.relpath(path.absolute(), self.output.absolute())).as_posix()
        except ValueError as error:
            raise PackError(
                "the output lies on another drive than the base graph",
                where=Where(file=path),
                hint="choose an output folder on the base's drive, or leave out --beside-base",
            ) from error

    def locate(self, path: str) -> Path:
        """Where a recorded file lies while the pack is not published yet."""
        for waiting, final in self.neighbours:
            if self.relative(final) == path:
                return waiting
        return self.root / path

    def _packed(
        self, path: str, role: str, use_case: str | None, size: int, sha256: str
    ) -> PackedFile:
        return PackedFile(path, self.target, role, use_case, size, sha256)

    def _target(self, path: str) -> Path:
        if path in self.files:
            raise PackError(
                f"two parts of the pack want to write {path!r}", where=Where(file=Path(path))
            )
        target = self.root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(target, error) from error
        return target


class OutputTransaction:
    """`with OutputTransaction(out, force=False) as folder:` publishes the pack at its end."""

    def __init__(self, output: Path, *, force: bool) -> None:
        """Raises PackError at once if `output` exists and may not be replaced."""
        self._output = output
        self._force = force
        _check_output(output, force)

    def __enter__(self) -> PackFolder:
        parent = self._output.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            staging = tempfile.mkdtemp(prefix=f".{self._output.name}.", suffix=".part", dir=parent)
        except OSError as error:
            raise _cannot_write(parent, error) from error
        self._folder = PackFolder(Path(staging), self._output)
        return self._folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._folder.root, ignore_errors=True)
            for waiting, _ in self._folder.neighbours:
                waiting.unlink(missing_ok=True)

    def _publish(self) -> None:
        retired: Path | None = None
        staging = self._folder.root
        staging.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            if self._output.exists():
                _check_output(self._output, self._force)
                retired = staging.with_suffix(".old")
                self._output.rename(retired)
            staging.rename(self._output)
            for waiting, final in self._folder.neighbours:
                waiting.replace(final)
        except OSError as error:
            if retired is not None and not self._output.exists():
                retired.rename(self._output)
            raise _cannot_write(self._output, error) from error
        if retired is not None:
            shutil.rmtree(retired, ignore_errors=True)


def _check_output(output: Path, force: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    where = Where(file=output)
    if not output.is_dir() or output.is_symlink():
        raise PackError(
            "the output path is taken by something that is not a folder",
            where=where,
            hint="choose another output folder",
        )
    is_pack = (output / MANIFEST).is_file()
    if not is_pack and any(output.iterdir()):
        raise PackError(
            f"the output folder holds files and no {MANIFEST}: it is not a pack, and will not be "
            "replaced, not even with --force",
            where=where,
            hint="choose another output folder, or empty this one",
        )
    if is_pack and not force:
        raise PackError(
            "the output folder already holds a pack",
            where=where,
            hint="add --force to replace it, or choose another folder",
        )


def _cannot_write(path: Path, error: OSError) -> PackError:
    return PackError(
        f"cannot write: {error.strerror or error}",
        where=Where(file=path),
        hint="check permissions and free space of the output folder",
    )
