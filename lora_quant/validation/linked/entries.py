"""The paths that a document names: where each stands, which file it means, what that has to be.

use-case:
  - name: tone
    model_name: modle.onnx    ->  lora_config.yaml:7:17, field use-case[0].model_name
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lora_quant.config.missing_path import missing_hint
from lora_quant.config.plain_values import PathParts
from lora_quant.config.real_path import real_path
from lora_quant.errors import NOWHERE, LoraQuantError, Where
from lora_quant.findings import Finding
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.rule import Rule


@dataclass(frozen=True)
class Entry:
    """One path. what: "the base graph", as messages call it; folder: whether it may be one."""

    at: PathParts
    file: Path
    what: str
    use_case: str | None = None
    adapter: str | None = None
    folder: bool = False

    @property
    def key(self) -> str:
        """The last key on the way to it."""
        return next(part for part in reversed(self.at) if isinstance(part, str))


@dataclass(frozen=True)
class Entries:
    """All paths of one document, in its order."""

    document: OpenedDocument
    every: tuple[Entry, ...]

    @cached_property
    def _places(self) -> Callable[[PathParts], Where]:
        return self.document.places()

    def where(self, entry: Entry, inner: Where = NOWHERE) -> Where:
        """The place of an entry, and what an `inner` place says apart from its file."""
        place = self.at(entry.at)
        return replace(
            place,
            use_case=entry.use_case or inner.use_case,
            adapter=entry.adapter or inner.adapter,
            module=inner.module,
            tensor=inner.tensor,
            node=inner.node,
        )

    def at(self, path: PathParts) -> Where:
        """The place of any part of the document."""
        return self._places(path)

    @cached_property
    def distinct(self) -> tuple[Entry, ...]:
        """The first entry of each file under each key."""
        found: dict[tuple[str, Path], Entry] = {}
        for entry in self.every:
            found.setdefault((entry.key, real_path(entry.file)), entry)
        return tuple(found.values())

    @cached_property
    def _by_file(self) -> dict[Path, list[tuple[int, Entry]]]:
        """Entries, with their numbers in the document, by the file that they name."""
        found: dict[Path, list[tuple[int, Entry]]] = {}
        for number, entry in enumerate(self.every):
            found.setdefault(real_path(entry.file), []).append((number, entry))
        return found

    @cached_property
    def _by_adapter(self) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for entry in self.every:
            if entry.adapter is not None:
                found.setdefault(entry.adapter, []).append(entry)
        return found

    def of_adapter(self, name: str) -> list[Entry]:
        """The entries of one adapter, in the order of the document."""
        return self._by_adapter.get(name, [])

    def missing(self, rule: Rule, wrong: Rule) -> Iterator[tuple[Entry, Finding]]:
        """Files that do not exist, and folders where a file is expected; each once."""
        for entry in self.distinct:
            if _exists(entry):
                continue
            if _kind_of(entry.file) == "folder":
                message = f"{self.shown(entry.file)!r} is a folder, and no file: {entry.what}"
                yield entry, wrong.finding(message, self.where(entry), "name the file itself")
            else:
                message = f"there is no file {self.shown(entry.file)!r}: {entry.what}"
                hint = missing_hint(entry.file, rule.mend)
                yield entry, rule.finding(message, self.where(entry), hint)

    def naming(self, place: Where) -> Entry | None:
        """The entry that an error or a finding at `place` is about, by its file or its names."""
        if place.file is not None:
            file = real_path(place.file)
            same = self._by_file.get(file, [])
            found = next((e for _, e in same if _same_use_case(e, place)), None)
            if found is not None:
                return found
            around = [self._by_file[p][0] for p in (file, *file.parents) if p in self._by_file]
            if around:
                return min(around, key=lambda numbered: numbered[0])[1]
        for name in ("use_case", "adapter"):
            known = getattr(place, name)
            for entry in self.every if known is not None else ():
                if getattr(entry, name) == known:
                    return entry
        return None

    def told(self, error: LoraQuantError | Finding, entry: Entry) -> tuple[str, Where]:
        """What is wrong inside the file of an entry: the message names the place there."""
        inner = error.where
        place = ""
        if inner.file is not None and real_path(inner.file) != real_path(self.document.path):
            place = self.shown(inner.file)
            if inner.line is not None:
                place += f":{inner.line}" + (f":{inner.column}" if inner.column else "")
            place += ": "
        return f"{place}{error.message}", self.where(entry, inner)

    def shown(self, path: Path) -> str:
        """A path as it is relative to the document, if that is shorter."""
        try:
            relative = os.path.relpath(path, self.document.path.parent)
        except ValueError:  # on another drive
            return path.as_posix()
        return Path(relative).as_posix() if len(relative) < len(str(path)) else path.as_posix()


def first_problem(findings: Iterable[Finding]) -> tuple[Finding, int] | None:
    """The first error of many, and how many more there are."""
    errors = [f for f in findings if f.severity.value == "error"]
    return (errors[0], len(errors) - 1) if errors else None


def _same_use_case(entry: Entry, place: Where) -> bool:
    return place.use_case is not None and entry.use_case == place.use_case


def _exists(entry: Entry) -> bool:
    return _kind_of(entry.file) in ("file", "folder" if entry.folder else "file")


def _kind_of(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"
