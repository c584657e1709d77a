"""What of a pack is still to be filled in: a note, since nothing of it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_quant.config.manifest import read_manifest
from lora_quant.config.placeholders import is_placeholder
from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.validation.files.lora_config_check import read_text
from lora_quant.validation.pack.device_configs import GENIE_ROLE, TEXT_ROLE


def open_entries(pack: Path) -> Iterator[Finding]:
    """One note for the whole pack; none where another check tells what cannot be read."""
    try:
        manifest = read_manifest(pack, check_seal=False)
    except LoraQuantError:
        return
    files = [f for t in manifest.targets for f in t.files if f.role in (GENIE_ROLE, TEXT_ROLE)]
    waiting = [file.path for file in files if _is_open(pack / file.path)]
    if waiting:
        yield Finding(
            "pack/not-filled-in",
            Severity.NOTE,
            f"{len(waiting)} files have entries that only the device compiler knows, and are not "
            f"filled in yet: {some(waiting, most=3)}",
            Where(file=pack),
            "once the device compiler has written context binaries and sections, run "
            f"`lora-quant fill-in {pack.as_posix()} SECTIONS`, and validate its copies",
        )


def _is_open(path: Path) -> bool:
    text = read_text(path, path)
    return isinstance(text, str) and is_placeholder(text)
