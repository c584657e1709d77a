"""The files below a folder, with bounds: what a person meant by a folder is not a whole disk.

Hidden folders are left out, and so are packs, which are the output of this tool. Links to folders
are not followed: they can lead in circles, or out of what was named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.errors import InputMissingError, Where, some
from lora_quant.findings import Finding, Severity

MAX_DEPTH = 8
MAX_FILES = 10_000


@dataclass(frozen=True)
class Walked:
    """Files in the order of their paths, and what was passed over."""

    files: tuple[Path, ...]
    findings: tuple[Finding, ...]


def walk_folder(folder: Path, *, max_depth: int = MAX_DEPTH, max_files: int = MAX_FILES) -> Walked:
    """Every file of `folder` and of the folders in it; InputMissingError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        raise InputMissingError(
            f"the folder cannot be read: {error.strerror or error}",
            where=Where(file=folder),
            hint="name the folder that holds the graphs, encodings and adapters",
        ) from None
    files: list[Path] = []
    links: list[str] = []
    deep: list[str] = []
    packs: list[str] = []
    locked: list[OSError] = []
    is_cut = False
    for place, folders, names in os.walk(folder, onerror=locked.append):
        here = Path(place)
        if MANIFEST_FILE in names:
            packs.append(shown_path(here, folder))
            folders.clear()
            continue
        linked = [here / name for name in sorted(folders) if _is_link(here / name)]
        links += [shown_path(path, folder) for path in linked]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not _is_link(here / n))
        if folders and len(here.relative_to(folder).parts) >= max_depth:
            deep += [shown_path(here / name, folder) for name in folders]
            folders.clear()
        for name in sorted(names):
            if len(files) == max_files:
                is_cut = True
                folders.clear()
                break
            if not name.startswith(".") and (here / name).is_file():
                files.append(here / name)
        if is_cut:
            break
    passed = (
        ("link", links, "links to folders are not followed", Severity.NOTE),
        ("pack", packs, "packs are what lora-quant makes, and were left out", Severity.NOTE),
        ("depth", deep, f"folders below {max_depth} others were not read", Severity.WARNING),
    )
    findings = [
        Finding(f"convert/{rule}", severity, f"{text}: {some(found)}", Where(file=folder))
        for rule, found, text, severity in passed
        if found
    ]
    findings += _locked(locked)
    if is_cut:
        findings.append(
            Finding(
                "convert/limit",
                Severity.WARNING,
                f"the folder holds more than {max_files} files; the rest was not read",
                Where(file=folder),
                "name the folder that holds the files of this model only",
            )
        )
    return Walked(tuple(files), tuple(findings))


def _locked(errors: list[OSError]) -> Iterator[Finding]:
    for error in errors:
        yield Finding(
            "convert/unreadable",
            Severity.WARNING,
            f"the folder cannot be read: {error.strerror or error}",
            Where(file=Path(error.filename)),
            "check its permissions",
        )


def _is_link(path: Path) -> bool:
    """A symbolic link, or what Windows calls a junction."""
    return path.is_symlink() or getattr(path, "is_junction", bool)()


def shown_path(path: Path, folder: Path) -> str:
    """A path as a person reads it: relative to the folder where it lies in it."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()
