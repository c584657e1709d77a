"""What there is to check below the paths that a person names, without opening any of it.

folder/            ->  folder/lora_config.yaml, folder/tone (an adapter), folder/out (a pack), ...

A folder is looked through once: not what links lead to, nothing hidden, no deeper than 64 folders.
A pipe or a device is never opened, since that could wait for ever.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from lora_quant.config.manifest_seal import MANIFEST_FILE
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue.recognise import (
    BROKEN_LINK,
    NOT_A_FILE,
    NOTHING,
    TOO_DEEP,
    UNREADABLE_FOLDER,
)
from lora_quant.validation.found.exclusion import Exclusion

SUFFIXES: Final = (
    ".json",
    ".yaml",
    ".yml",
    ".encodings",
    ".onnx_adapter",
    ".onnx",
    ".safetensors",
    ".gguf",
    "quant_updatable_tensors.txt",
    "lora_tensor_names.txt",
    "lora_config.txt",
)
"""Files whose names end in these are checked when a folder is named; any file is if it is named."""

MAX_DEPTH: Final = 64
"""How many folders deep a folder is looked through."""

_MATTERS_IF_NAMED = (BROKEN_LINK.id, NOT_A_FILE.id)

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = frozenset({"adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"})


class Shape(Enum):
    """What an item is by the look of its folder alone."""

    FILE = "file"
    PACK = "pack"
    ADAPTER = "adapter"
    """A folder with a PEFT configuration and weights; its other files are items of their own."""
    FAULT = "fault"
    """Nothing that can be opened; the finding says why."""


@dataclass(frozen=True)
class Item:
    """One thing to check. `named`: a person gave this very path. `size` in bytes, 0 for folders."""

    path: Path
    shape: Shape
    named: bool = False
    size: int = 0
    fault: Finding | None = None

    @property
    def unknown(self) -> Severity:
        """How much it matters if nobody knows what the item is."""
        return Severity.ERROR if self.named else Severity.NOTE


def find_items(paths: Iterable[Path], exclusion: Exclusion | None = None) -> Iterator[Item]:
    """The items in the order of the paths, each once however many paths lead to it.

    In a folder, files come before folders, both sorted by name. Exclusions do not hold for the
    paths themselves. Never raises for what it meets.
    """
    given = list(paths)
    finder = _Finder(exclusion or Exclusion(), frozenset(map(_real, given)))
    for path in given:
        yield from finder.at(path)


@dataclass
class _Finder:
    exclusion: Exclusion
    named: frozenset[str]
    seen: set[str] = field(default_factory=set)

    def at(self, path: Path) -> Iterator[Item]:
        real = _real(path)
        try:
            status = path.stat()
        except (OSError, ValueError):  # ValueError: a name with a zero byte
            yield from self._once(_lost(path), real)
            return
        if not stat.S_ISDIR(status.st_mode):
            yield from self._once(_file(path, status), real)
            return
        found = False
        for item, key in self._below(path, real):
            found = True
            yield from self._once(item, key)
        if not found:
            finding = NOTHING.finding(
                "the folder holds nothing that can be checked",
                Where(file=path),
                f"looked for {MANIFEST_FILE} and files that end in {', '.join(SUFFIXES)}",
            )
            yield Item(path, Shape.FAULT, named=True, fault=finding)

    def _once(self, item: Item, real: str) -> Iterator[Item]:
        key = f"{item.shape is Shape.ADAPTER} {real}"  # in an adapter lies what shares its path
        if key in self.seen:
            return
        self.seen.add(key)
        named = real in self.named
        fault = item.fault
        if fault is not None and not named and fault.rule in _MATTERS_IF_NAMED:
            fault = replace(fault, severity=Severity.NOTE)
        yield replace(item, named=named, fault=fault)

    def _below(self, top: Path, top_real: str) -> Iterator[tuple[Item, str]]:
        """Items, each with its path as `_real` tells it."""
        waiting = [(top, top_real, 0)]
        while waiting:
            folder, real, depth = waiting.pop()
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                yield _unreadable(folder, error), real
                continue
            files, folders = self._sorted_out(entries, real)
            names = {entry.name for entry in files}
            if MANIFEST_FILE in names and (folder / MANIFEST_FILE).is_file():
                yield Item(folder, Shape.PACK), real
                continue
            is_adapter = _ADAPTER_CONFIG in names and not _ADAPTER_WEIGHTS.isdisjoint(names)
            if is_adapter:
                yield Item(folder, Shape.ADAPTER), real
            for entry in files:
                if is_adapter and entry.name in _ADAPTER_WEIGHTS:
                    continue
                if entry.name.lower().endswith(SUFFIXES):
                    yield _met(folder / entry.name), _inside(real, entry.name)
            if folders and depth == MAX_DEPTH:
                yield _too_deep(folder), real
                continue
            waiting += [
                (folder / entry.name, _inside(real, entry.name), depth + 1)
                for entry in reversed(folders)
            ]

    def _sorted_out(
        self, entries: list[os.DirEntry[str]], real: str
    ) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """What is no folder, and the folders to look into."""
        files: list[os.DirEntry[str]] = []
        folders: list[os.DirEntry[str]] = []
        for entry in entries:
            if self.exclusion.matches(_inside(real, entry.name)):
                continue
            if not _is_folder(entry):
                files.append(entry)
            elif not entry.name.startswith(".") and not entry.is_symlink():
                folders.append(entry)
        return files, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also behind a link, which keeps such a link from being taken for a file."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _met(path: Path) -> Item:
    """A file of a folder, whose entry may be a link, or no file at all."""
    try:
        return _file(path, path.stat())
    except OSError:
        return _lost(path)


def _file(path: Path, status: os.stat_result) -> Item:
    if stat.S_ISREG(status.st_mode):
        return Item(path, Shape.FILE, size=status.st_size)
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    what = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    finding = NOT_A_FILE.finding(f"the path leads to {what}, not to a file", Where(file=path))
    return Item(path, Shape.FAULT, fault=finding)


def _lost(path: Path) -> Item:
    """What cannot be looked at: a link to nowhere, or a path that its reader will refuse."""
    try:
        target = path.readlink()
    except (OSError, ValueError):
        return Item(path, Shape.FILE)
    message = f"the link leads to {str(target)!r}, which is not there"
    finding = BROKEN_LINK.finding(message, Where(file=path))
    return Item(path, Shape.FAULT, fault=finding)


def _unreadable(folder: Path, error: OSError) -> Item:
    message = f"the folder cannot be looked into: {error.strerror or error}"
    finding = UNREADABLE_FOLDER.finding(message, Where(file=folder))
    return Item(folder, Shape.FAULT, fault=finding)


def _too_deep(folder: Path) -> Item:
    message = f"this folder lies {MAX_DEPTH} deep: folders in it were not looked into"
    return Item(folder, Shape.FAULT, fault=TOO_DEEP.finding(message, Where(file=folder)))


def _inside(real: str, name: str) -> str:
    return real + name if real.endswith(os.sep) else real + os.sep + name


def _real(path: Path) -> str:
    """A path that is equal for all ways to one file; a link to a file is not what it leads to."""
    try:
        if path.is_dir() or path.name in ("", ".."):
            return os.path.realpath(path)
        return _inside(os.path.realpath(path.parent), path.name)
    except (OSError, ValueError):
        return str(path)
