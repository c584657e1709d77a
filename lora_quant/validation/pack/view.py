"""A pack that is being checked: its manifest, and where its files lie now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lora_quant.config.located import path_text
from lora_quant.config.manifest import MANIFEST_FILE, Manifest
from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.schema_check import Depth


@dataclass(frozen=True, eq=False)
class PackView:
    """`root` is the folder that holds `pack.json`, `shown` the one that findings name.

    `locate` maps a path of the manifest to where the file lies: before publication, files wait in
    a staging folder, and the neighbours of the base under other names. `usable` holds the paths
    of files that exist where a pack may have them. `inside` finds a part of the manifest in its
    text, if that is at hand.
    """

    manifest: Manifest
    root: Path
    shown: Path
    locate: Callable[[str], Path]
    depth: Depth
    usable: frozenset[str] = frozenset()
    inside: Callable[[PathParts], Where] | None = None

    def files(self, target: TargetRecord, role: str) -> Iterator[PackFile]:
        """The usable files of a role."""
        return (f for f in target.files if f.role == role and f.path in self.usable)

    def waits(self, file: PackFile) -> bool:
        """Whether the file lies under another name until the pack is published."""
        return self.locate(file.path).name != PurePosixPath(file.path).name

    def show(self, path: str) -> Path:
        """A path of the manifest as findings name it."""
        return Path(os.path.normpath(self.shown / path))

    def error(
        self, rule: str, message: str, path: str, *, hint: str | None = None, **place: Any
    ) -> Finding:
        """An error `pack/<rule>` in the file `path` of the pack."""
        where = Where(file=self.show(path), **place)
        return Finding(f"pack/{rule}", Severity.ERROR, message, where, hint)

    def error_in_manifest(
        self, rule: str, message: str, part: PathParts, *, hint: str, **place: Any
    ) -> Finding:
        """An error `pack/<rule>` in the part of the manifest that a path leads to."""
        where = Where(file=self.show(MANIFEST_FILE), field=path_text(part) or None)
        if self.inside is not None:
            where = self.inside(part)
        return Finding(f"pack/{rule}", Severity.ERROR, message, replace(where, **place), hint)
