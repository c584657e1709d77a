"""The files of a pack against the manifest's list: nothing missing, changed, added or outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import PackFile
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding
from lora_quant.graph.files.data_files import sampled_sha256, sha256_of
from lora_quant.validation.documents.relative_paths import is_outside, normalised
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.view import PackView

_REBUILD = "build the pack again, or take the file from an undamaged copy"
_ELSEWHERE = "only the graph of a pack that was built with --beside-base may lie elsewhere"
_UNTRUSTED = "do not use this pack unless you know who made it"
_BESIDE_BASE_ROLES = ("graph", "graph-data")


def check_files(view: PackView) -> tuple[PackView, tuple[Finding, ...]]:
    """The view with its usable files, and what is wrong with the others.

    A file outside the pack is reported and not opened, unless it is one that --beside-base puts
    there. With `Depth.QUICK`, sizes are compared and no hashes.
    """
    findings: list[Finding] = []
    usable: set[str] = set()
    seen: dict[str, PackFile] = {}
    for place, file in _listed(view):
        path = normalised(file.path)
        if path in seen:
            findings.append(_listed_twice(view, place, file, seen[path]))
            continue
        seen[path] = file
        problem = _outside(view, place, file, path) or _missing(view, file)
        if problem is None:
            usable.add(file.path)
            problem = _changed(view, file)
        if problem is not None:
            findings.append(problem)
    findings.extend(_base_data(view))
    findings.extend(_strays(view, set(seen)))
    return replace(view, usable=frozenset(usable)), tuple(findings)


def _listed(view: PackView) -> Iterator[tuple[PathParts, PackFile]]:
    """Every file of the manifest, and where the manifest has its path."""
    for target, record in enumerate(view.manifest.targets):
        for index, file in enumerate(record.files):
            yield ("targets", target, "files", index, "path"), file


def _listed_twice(view: PackView, place: PathParts, file: PackFile, first: PackFile) -> Finding:
    return view.error_in_manifest(
        "listed-twice",
        f"the manifest lists the file {file.path!r} twice, as {first.role!r} and as {file.role!r}",
        place,
        hint="build the pack again",
    )


def _outside(view: PackView, place: PathParts, file: PackFile, path: str) -> Finding | None:
    beside_base = view.manifest.base.beside_base and file.role in _BESIDE_BASE_ROLES
    if is_outside(path):
        if beside_base:
            return None
        return view.error_in_manifest(
            "outside",
            f"the manifest lists the file {file.path!r}, which is outside the pack; {_ELSEWHERE}",
            place,
            hint=_UNTRUSTED,
        )
    if not view.locate(file.path).resolve().is_relative_to(view.root.resolve()):
        what = f"the file is a link that leads out of the pack; {_ELSEWHERE}"
        return view.error("outside", what, file.path, hint=_UNTRUSTED)
    return None


def _missing(view: PackView, file: PackFile) -> Finding | None:
    if view.locate(file.path).is_file():
        return None
    return view.error(
        "missing-file",
        f"the manifest lists this file ({file.role}), and it is not there",
        file.path,
        hint=_REBUILD,
        use_case=file.use_case,
    )


def _changed(view: PackView, file: PackFile) -> Finding | None:
    path = view.locate(file.path)
    try:
        size = path.stat().st_size
        digest = sha256_of(path) if size == file.size and view.depth is Depth.FULL else file.sha256
    except OSError as error:
        return view.error(
            "unreadable", f"the file cannot be read: {error.strerror}", file.path, hint=_REBUILD
        )
    if size != file.size:
        what, rule = f"{size} bytes, the manifest says {file.size}", "size"
    elif digest != file.sha256:
        what = f"the SHA-256 {digest[:12]}..., the manifest says {file.sha256[:12]}..."
        rule = "hash"
    else:
        return None
    message = f"the file was changed after the build: it has {what}"
    return view.error(rule, message, file.path, hint=_REBUILD, use_case=file.use_case)


def _base_data(view: PackView) -> Iterator[Finding]:
    """The data that a graph beside the base shares with it, which is no file of the pack."""
    base = view.manifest.base
    if not base.beside_base or view.depth is not Depth.FULL:
        return
    for data in base.data:
        if data.path is None:
            continue
        path = view.locate(data.path)
        try:
            same = path.stat().st_size == data.size
            same = same and data.sampled_sha256 in (None, sampled_sha256(path))
        except (OSError, LoraQuantError):
            continue  # the check of the graph says what is wrong with it
        if not same:
            yield view.error(
                "base-data",
                "the base's data, which the graph of the pack shares, was changed after the build",
                data.path,
                hint="build the pack again, on the base as it is now",
            )


def _strays(view: PackView, listed: set[str]) -> Iterator[Finding]:
    for path in sorted(_files_below(view.root)):
        if path != MANIFEST_FILE and path not in listed:
            yield view.error(
                "stray-file",
                "the file is in the pack, and the manifest does not list it",
                path,
                hint="remove it: a pack holds only what its build wrote",
            )


def _files_below(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in files + links:
            yield (Path(folder) / name).relative_to(root).as_posix()
