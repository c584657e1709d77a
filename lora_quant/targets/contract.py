"""What a target is: it turns a finished compilation into the files of one kind of device."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from lora_quant.findings import Finding
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import PackFolder


@runtime_checkable
class Target(Protocol):
    """One kind of device. `name` is also its entry point in `lora_quant.targets` and its folder."""

    name: ClassVar[str]

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """Write all files below `<name>/` of the pack; one use case, one branch at a time."""
