"""The folder that a pack grows in: files are hashed and recorded as they are written.

It lies out of sight until it is complete; see lora_quant.targets.files.output_transaction.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from lora_quant.config.manifest_records import AlphaRecord, OverridableRecord
from lora_quant.config.real_path import real_path
from lora_quant.errors import LoraQuantError, PackError, Where
from lora_quant.graph.files.data_files import copy_with_sha256, sha256_of
from lora_quant.targets.files.waiting_names import waiting_name

MANIFEST = "pack.json"

GRAPH_SUFFIX = ".onnx"
ZEROS_SUFFIX = ".zeros.data"


# The target whose files beside the base are named after the pack alone.
_UNNAMED_TARGET = "qairt"


def neighbour_stem(base: Path, output: Path, target: str) -> str:
    """How the names begin of the files that a target of `output` has beside the graph `base`."""
    of_target = "" if target == _UNNAMED_TARGET else f".{target}"
    # onnx takes two dots in a row for a way out of the folder.
    return f"{base.stem}.{output.name}{of_target}".replace("..", "_")


def neighbour_names(base: Path, output: Path, targets: Iterable[str]) -> frozenset[str]:
    """The names of these files; a copy of the pack under another name has others."""
    stems = [neighbour_stem(base, output, target) for target in targets]
    return frozenset(stem + suffix for stem in stems for suffix in (GRAPH_SUFFIX, ZEROS_SUFFIX))


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


@dataclass(frozen=True)
class TargetDetails:
    """What the manifest tells of a target besides its files (see TargetRecord)."""

    alpha: AlphaRecord | None = None
    inputs: tuple[OverridableRecord, ...] = ()
    fingerprint: int | None = None
    htp_arch: str | None = None


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

    `output` is the absolute path that the pack will have. `target` is the name of the target that
    is writing. `neighbours` are finished files that belong into another folder (the base's, with
    --beside-base): where they wait and where they go. `replaceable` are those that the pack which
    is being replaced has there, by path relative to the pack. `announce` is told of each neighbour
    before anything of it is written. `details` holds what targets tell of
    themselves, by name.
    """

    root: Path
    output: Path
    target: str = ""
    replaceable: frozenset[str] = frozenset()
    announce: Callable[[Path], object] | None = None
    files: dict[str, PackedFile] = field(default_factory=dict)
    neighbours: list[tuple[Path, Path]] = field(default_factory=list)
    details: dict[str, TargetDetails] = field(default_factory=dict)

    @contextlib.contextmanager
    def create(self, path: str, role: str, use_case: str | None = None) -> Iterator[HashingWriter]:
        """A new file of the pack at a relative path."""
        with _open(self._target(path)) as writer:
            yield writer
        self.files[path] = self._packed(path, role, use_case, writer.size, writer.sha256())

    def write_text(self, path: str, role: str, text: str, use_case: str | None = None) -> None:
        """A whole text file, UTF-8, line ends as given."""
        with self.create(path, role, use_case) as writer:
            writer.write(text.encode())

    def write_manifest(self, text: str) -> None:
        """`pack.json`, which lists all other files and covers itself by its seal."""
        with _open(self.root / MANIFEST) as writer:
            writer.write(text.encode())

    def copy(self, path: str, role: str, source: Path) -> None:
        """A copy of a large file, hashed on the way."""
        target = self._target(path)
        digest = copy_with_sha256(source, target)
        with _open(target, "r+b"):
            pass  # to have it on the disk
        self.files[path] = self._packed(path, role, None, target.stat().st_size, digest)

    def refer(self, path: Path, role: str) -> str:
        """List a file outside the pack that is there already; returns its path from the pack."""
        if real_path(path).is_relative_to(real_path(self.output)):
            raise PackError(
                "the file lies in the output folder, which is replaced as a whole",
                where=Where(file=path),
                hint="choose another output folder, or leave out --beside-base",
            )
        relative = self.relative(path)
        self._check_free(relative)
        size, digest = path.stat().st_size, sha256_of(path)
        self.files[relative] = self._packed(relative, role, None, size, digest)
        return relative

    @contextlib.contextmanager
    def create_neighbour(self, final: Path, role: str) -> Iterator[HashingWriter]:
        """A new file outside the pack, beside the base; it appears together with the pack."""
        waiting = waiting_name(final, self.root)
        path = self.relative(final)
        self._check_free(path)
        if path not in self.replaceable and (final.exists() or final.is_symlink()):
            raise PackError(
                "a file is in the way that this build may not replace",
                where=Where(file=final),
                hint="it may be the graph of another pack of the same name: choose another output "
                "name",
            )
        if self.announce is not None:
            try:
                self.announce(final)
            except OSError as error:
                raise cannot_write(final, error) from error
        self.neighbours.append((waiting, final))
        with _open(waiting) as writer:
            yield writer
        self.files[path] = self._packed(path, role, None, writer.size, writer.sha256())

    def relative(self, path: Path) -> str:
        """A path as seen from the finished pack, with forward slashes."""
        try:
            return Path(os.path.relpath(path.absolute(), self.output)).as_posix()
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
        self._check_free(path)
        target = self.root / path
        try:
            # Not `parents`: the pack's own folder is not made again if somebody removed it.
            for folder in reversed(PurePosixPath(path).parents[:-1]):
                (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(target, error) from error
        return target

    def _check_free(self, path: str) -> None:
        if path in self.files:
            raise PackError(
                f"two parts of the pack want to write {path!r}", where=Where(file=Path(path))
            )


@contextlib.contextmanager
def _open(path: Path, mode: Literal["wb", "r+b"] = "wb") -> Iterator[HashingWriter]:
    """A file that is on the disk at the end; OSErrors become PackErrors, others pass as they are.

    Publishing removes the old pack: a power cut must not find the new one in memory only.
    """
    try:
        with path.open(mode) as file:
            yield HashingWriter(file)
            file.flush()
            os.fsync(file.fileno())
    except LoraQuantError:
        raise  # some of them are OSErrors as well
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> PackError:
    """The error for a file or folder that the system does not let us write."""
    too_long = error.errno == errno.ENAMETOOLONG
    return PackError(
        f"cannot write: {error.strerror or error}",
        where=Where(file=path),
        hint="choose a shorter name for the output folder"
        if too_long
        else "check permissions and free space of the output folder",
    )
