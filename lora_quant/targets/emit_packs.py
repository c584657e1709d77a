"""Pass: write the packs of every requested target, and the manifest that covers every file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant import plugins
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import BRANCHES_BUILT, ENCODINGS_MERGED, UPDATABLE_SELECTED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.targets.build_manifest import build_manifest
from lora_quant.targets.files.pack_folder import PackFolder


@dataclass(frozen=True)
class EmitPacks:
    """Writes into the compilation's staging folder; nothing is published here."""

    name: ClassVar[str] = "emit-packs"
    requires: ClassVar[tuple[Condition, ...]] = (
        BRANCHES_BUILT,
        UPDATABLE_SELECTED,
        ENCODINGS_MERGED,
    )
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        """Raises PackError if something cannot be written, PluginError for an unknown target."""
        folder: PackFolder = compilation.having("staging")
        targets = [
            plugins.make(plugins.TARGETS, name)
            for name in dict.fromkeys(compilation.options.targets)
        ]
        for target in targets:
            folder.target = target.name
            compilation = compilation.with_findings(*target.emit(compilation, folder))
        manifest = build_manifest(compilation, folder, [target.name for target in targets])
        folder.write_manifest(manifest.dump())
        return PassResult(compilation, changed=True)
