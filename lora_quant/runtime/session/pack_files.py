"""A pack as a session needs it: one target, whose files are the ones that were built.

full     every file: it is there, its size, its SHA-256
quick    the same without the hashes of files above 16 MiB

Data that stays beside the base is compared by samples, as when the pack was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.manifest_records import (
    AlphaRecord,
    PackFile,
    StoredFile,
    TargetRecord,
    UseCaseRecord,
)
from lora_quant.errors import (
    ConfigError,
    InputMissingError,
    VerificationError,
    Where,
    did_you_mean,
)
from lora_quant.graph.files.data_files import sampled_sha256, sha256_of

Integrity = Literal["full", "quick"]
Device = Literal["cpu", "htp"]

RUNNABLE = ("onnxruntime", "qnn")
"""Targets that a session runs, the preferred one first."""

_ON_HTP = "qnn"
_QUICK_BYTES = 16 << 20
REBUILD = "build the pack again, or copy it again from where it was built"


@dataclass(frozen=True, eq=False)
class SessionPack:
    """One target of a pack; `stamps` are size and time of its files when they were checked."""

    folder: Path
    manifest: Manifest
    target: TargetRecord
    stamps: Mapping[str, tuple[int, int]]

    @property
    def alpha(self) -> AlphaRecord | None:
        """The input for the strengths of this target's graph; None if it has none."""
        return self.manifest.alpha_of(self.target)

    def use_case(self, name: str) -> UseCaseRecord:
        """A use case by name; ConfigError if the pack has none."""
        for record in self.manifest.use_cases:
            if record.name == name:
                return record
        raise ConfigError(
            f"the pack has no use case {name!r}",
            where=Where(file=self.folder, use_case=name),
            hint=did_you_mean(name, [u.name for u in self.manifest.use_cases]),
        )

    def find(self, role: str, use_case: str | None = None) -> Path | None:
        """The one file of a role, None if there is none.

        Raises VerificationError if there are several, or if the file was replaced since the pack
        was opened.
        """
        files = self.manifest.files(self.target.name, role=role, use_case=use_case)
        if len(files) > 1:
            raise VerificationError(
                f"the pack has {len(files)} files of role {role!r}, expected one",
                where=Where(file=self.folder, use_case=use_case),
                hint=REBUILD,
            )
        if not files:
            return None
        path = self.folder / files[0].path
        if _stamp(path) != self.stamps[files[0].path]:
            raise VerificationError(
                "a file of the pack was changed while the session was open",
                where=Where(file=path, use_case=use_case),
                hint="open a new session",
            )
        return path

    def require(self, role: str, use_case: str | None = None) -> Path:
        """The one file of a role; VerificationError if there is none, or as for `find`."""
        path = self.find(role, use_case)
        if path is None:
            raise VerificationError(
                f"the pack has no file of role {role!r} for the target {self.target.name!r}",
                where=Where(file=self.folder, use_case=use_case),
                hint=REBUILD,
            )
        return path


def open_session_pack(
    folder: Path, *, target: str | None, device: Device, integrity: Integrity
) -> SessionPack:
    """Read the manifest and check the files of one target.

    Raises ConfigError for a target or a device that the pack was not made for, InputMissingError
    for a file that is missing, VerificationError for one that is not the one that was built.
    """
    for what, got, known in (
        ("device", device, get_args(Device)),
        ("integrity check", integrity, get_args(Integrity)),
    ):
        if got not in known:
            raise ConfigError(f"there is no {what} {got!r}", hint=did_you_mean(got, known))
    manifest = read_manifest(folder)
    record = _target(manifest, folder, target, device)
    stamps = {file.path: _check(folder, file, integrity) for file in record.files}
    if manifest.base.beside_base:
        for data in manifest.base.data:
            _check_shared(folder, data)
    return SessionPack(folder, manifest, record, stamps)


def _target(manifest: Manifest, folder: Path, name: str | None, device: Device) -> TargetRecord:
    built = {record.name: record for record in manifest.targets}
    if name is not None and name not in RUNNABLE:
        raise ConfigError(
            f"a session cannot run the target {name!r}", hint=did_you_mean(name, RUNNABLE)
        )
    wanted = RUNNABLE if device == "cpu" else (_ON_HTP,)
    if name is not None and name not in wanted:
        raise ConfigError(
            f"the device {device!r} runs the target {_ON_HTP!r}, got {name!r}",
            hint=f"leave out the target, or build with --target {_ON_HTP}",
        )
    chosen = [one for one in ((name,) if name is not None else wanted) if one in built]
    if not chosen:
        raise ConfigError(
            f"the pack was built for {_list(list(built))}, expected "
            f"{_list([name] if name is not None else wanted)}",
            where=Where(file=folder),
            hint=f"build with --target {name or wanted[0]}",
        )
    return built[chosen[0]]


def _check(folder: Path, file: PackFile, integrity: Integrity) -> tuple[int, int]:
    path = folder / file.path
    stamp = _stamp(path)
    if stamp is None:
        raise InputMissingError(
            "a file of the pack is missing", where=Where(file=path), hint=REBUILD
        )
    if stamp[0] != file.size:
        raise VerificationError(
            f"a file of the pack has {stamp[0]:,} bytes, expected {file.size:,}",
            where=Where(file=path),
            hint=REBUILD,
        )
    is_hashed = integrity == "full" or file.size <= _QUICK_BYTES
    if is_hashed and sha256_of(path) != file.sha256:
        raise VerificationError(
            "a file of the pack was changed after it was built: its SHA-256 differs",
            where=Where(file=path),
            hint=REBUILD,
        )
    return stamp


def _check_shared(folder: Path, data: StoredFile) -> None:
    """The base's weights, which a graph beside the base shares with it."""
    if data.path is None:
        return
    path = folder / data.path
    if _stamp(path) is None:
        raise InputMissingError(
            "the weights of the base graph are not there", where=Where(file=path), hint=REBUILD
        )
    if data.sampled_sha256 not in (None, sampled_sha256(path)):
        raise VerificationError(
            "the weights beside the graph are not those of the base that the pack was built for",
            where=Where(file=path),
            hint="put the base's data file back, or build the pack again",
        )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if path.is_file() else None


def _list(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names)) or "nothing"
