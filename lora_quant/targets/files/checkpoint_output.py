"""When a folder may be replaced by a new adapter checkpoint: if it holds one and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_quant.errors import PackError, Where, some
from lora_quant.targets.files.peft_checkpoint import FILES


def check_checkpoint_output(output: Path, force: bool) -> Mapping[str, str]:
    """An OutputCheck: PackError unless a checkpoint may appear at `output`."""
    where = Where(file=output)
    if not output.exists() and not output.is_symlink():
        return {}
    if not output.is_dir() or output.is_symlink():
        raise PackError(
            "the output path is taken by something that is not a folder",
            where=where,
            hint="choose another output folder",
        )
    found = {path.name for path in output.iterdir()}
    foreign = sorted(found - FILES)
    if foreign:
        raise PackError(
            f"the output folder holds files that are not part of a lowered adapter: "
            f"{some(foreign, most=3)}; it will not be replaced, not even with --force",
            where=where,
            hint="choose another output folder, or empty this one",
        )
    if found and not force:
        raise PackError(
            "the output folder already holds an adapter",
            where=where,
            hint="add --force to replace it, or choose another folder",
        )
    return {}
