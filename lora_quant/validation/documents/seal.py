"""The manifest of a pack against its own seal: a flipped bit or an edit shows, blanks included."""

from __future__ import annotations

from pathlib import Path

from lora_quant.config.manifest_seal import MANIFEST_FILE, is_sealed
from lora_quant.errors import Where
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.pack import MANIFEST_CHANGED


def check_seal(path: Path, *, shown: Path) -> tuple[Finding, ...]:
    """`pack/manifest-changed` unless the file, a manifest that was read already, is sealed."""
    try:
        sealed = is_sealed(path.read_bytes())
    except OSError:
        sealed = False  # it went, or was taken away, since it was read
    if sealed:
        return ()
    message = f"{MANIFEST_FILE} was changed since it was written: its seal does not fit"
    return (MANIFEST_CHANGED.finding(message, Where(file=shown)),)
