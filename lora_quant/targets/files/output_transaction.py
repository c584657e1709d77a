"""Publishing a pack: it appears whole or not at all.

The pack grows in a hidden folder beside the output and appears by renaming. A build that fails or
is interrupted leaves what was there before, and nothing else; what a killed one leaves is cleaned
up by the next build of the same output. One build writes an output at a time, a second one is
refused (lora_quant.targets.files.build_journal).
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType

from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.publishing import sync_folder, sync_folders
from lora_quant.errors import LoraQuantError, PackError, Where, some
from lora_quant.graph.files.data_files import sha256_of
from lora_quant.targets.files.build_journal import BuildJournal
from lora_quant.targets.files.pack_folder import MANIFEST, PackFolder, cannot_write, neighbour_names

OutputCheck = Callable[[Path, bool], Mapping[str, str]]
"""(output, force) -> files beside it that go with it, or PackError if it may not be replaced."""

_ONLY_OWNER = ~(stat.S_IRWXG | stat.S_IRWXO)


class OutputTransaction:
    """`with OutputTransaction(out, force=False) as folder:` publishes the pack at its end.

    `check` says what may be replaced; by default packs.
    """

    def __init__(self, output: Path, *, force: bool, check: OutputCheck | None = None) -> None:
        """Raises PackError at once if `output` exists and may not be replaced."""
        self._output = Path(os.path.normpath(output.absolute()))
        self._check = _check_output if check is None else check
        self._force = force
        self._made_parents: list[Path] = []
        self._journal: BuildJournal | None = None
        self._mode = 0o777
        with _refused(self._output):
            self._look()

    def __enter__(self) -> PackFolder:
        """Raises PackError if another process is writing the output."""
        parent = self._output.parent
        try:
            with _refused(parent):
                self._made_parents = [p for p in (parent, *parent.parents) if not p.exists()]
                parent.mkdir(parents=True, exist_ok=True)
            journal = self._journal = BuildJournal(self._output)
            # An interrupt between any two statements leaves nothing, either.
            weakref.finalize(self, journal.close)
            with _refused(self._output):
                self._old_neighbours = (
                    self._look()
                )  # a build that was killed may have been taken back
            with _refused(parent):
                journal.staging.mkdir()
                self._mode = stat.S_IMODE(journal.staging.stat().st_mode)
                journal.staging.chmod(self._mode & _ONLY_OWNER)
        except BaseException:
            self._clean_up()
            self._remove_parents()
            raise
        replaceable = frozenset(self._old_neighbours)
        self._folder = PackFolder(
            journal.staging, self._output, replaceable=replaceable, announce=journal.announce
        )
        return self._folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        published = False
        try:
            if kind is None:
                with _refused(self._output):
                    self._publish()
                published = True
        finally:
            self._clean_up()
            if not published:
                self._remove_parents()

    def _look(self) -> Mapping[str, str]:
        """What the pack that is there has beside its base; PackError if it may not be replaced."""
        found = self._check(self._output, self._force)
        for folder, _, _ in os.walk(self._output):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PackError(
                    "the output folder is write-protected, and is not replaced, not even with "
                    "--force",
                    where=Where(file=Path(folder)),
                    hint="choose another output folder, or change its permissions",
                )
        return found

    def _publish(self) -> None:
        if self._journal is None:
            raise TypeError("the transaction was not entered")
        staging = self._folder.root
        sync_folders(staging)
        self._look()
        with contextlib.suppress(FileNotFoundError):  # what is replaced leaves its permissions
            self._mode = stat.S_IMODE(self._output.stat().st_mode)
        staging.chmod(self._mode)
        self._journal.publish(
            map(self._output.joinpath, self._old_neighbours), self._stale_neighbours()
        )
        with contextlib.suppress(OSError):  # it is published, and would be without that
            sync_folder(self._output.parent)

    def _stale_neighbours(self) -> Iterator[Path]:
        """Files that the replaced pack had beside its base and the new one has not."""
        for path, sha256 in self._old_neighbours.items():
            file = Path(os.path.normpath(self._output / path))
            if path not in self._folder.files and file.is_file() and sha256_of(file) == sha256:
                yield file

    def _clean_up(self) -> None:
        """Remove what is hidden; an interrupt is obeyed when that is gone."""
        if self._journal is None:
            return
        with _refused(self._output):
            try:
                self._journal.close()
            except KeyboardInterrupt:
                self._journal.close()
                raise

    def _remove_parents(self) -> None:
        with contextlib.suppress(OSError):  # somebody else put something into them
            for parent in self._made_parents:
                parent.rmdir()


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """What the system does not let us do, as a PackError."""
    try:
        yield
    except LoraQuantError:
        raise  # some of them are OSErrors as well
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_output(output: Path, force: bool) -> Mapping[str, str]:
    """Raise PackError unless the pack may appear at `output`.

    Returns the files that a pack which is there has beside its base: path -> SHA-256.
    """
    if not output.exists() and not output.is_symlink():
        return {}
    where = Where(file=output)
    if not output.is_dir() or output.is_symlink():
        raise PackError(
            "the output path is taken by something that is not a folder",
            where=where,
            hint="choose another output folder",
        )
    if not any(output.iterdir()):
        return {}
    if not (output / MANIFEST).is_file():
        raise PackError(
            f"the output folder holds files and no {MANIFEST}: it is not a pack, and will not be "
            "replaced, not even with --force",
            where=where,
            hint="choose another output folder, or empty this one",
        )
    if not force:
        raise PackError(
            "the output folder already holds a pack",
            where=where,
            hint="add --force to replace it, or choose another folder",
        )
    return _files_outside(output)


def _files_outside(output: Path) -> Mapping[str, str]:
    """Check that a pack is ours to delete: readable, and without files that it does not list."""
    try:
        manifest = read_manifest(output / MANIFEST)
    except LoraQuantError as error:
        raise PackError(
            f"the {MANIFEST} in the output folder is not that of a pack, so the folder will not be "
            f"replaced, not even with --force: {error.message}",
            where=Where(file=output / MANIFEST),
            hint="choose another output folder, or empty this one",
        ) from error
    recorded = {f.path: f.sha256 for target in manifest.targets for f in target.files}
    foreign = sorted(
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and path.relative_to(output).as_posix() not in {MANIFEST, *recorded}
    )
    if foreign:
        raise PackError(
            f"the output folder holds files that are not part of its pack: {some(foreign, most=3)}",
            where=Where(file=output),
            hint="move them away, or choose another output folder",
        )
    own = _own_neighbours(manifest, output)
    return {path: sha256 for path, sha256 in recorded.items() if path in own}


def _own_neighbours(manifest: Manifest, output: Path) -> frozenset[str]:
    """Where the pack in `output` has files beside its base, by the names that a build gives them.

    The manifest alone does not tell: that of a copied or renamed pack lists the original's files.
    """
    if manifest.base.graph.path is None:
        return frozenset()
    base = PurePosixPath(manifest.base.graph.path)
    targets = [target.name for target in manifest.targets]
    return frozenset(
        (base.parent / name).as_posix() for name in neighbour_names(Path(base), output, targets)
    )
