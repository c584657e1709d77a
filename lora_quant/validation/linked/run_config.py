"""A run config against the pack beside it: its use case is there, and has these adapters.

run.yaml, pack.json         in one folder
run.yaml, out/pack.json     the only pack of the folders below it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE, Manifest, read_manifest
from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.errors import LoraQuantError, did_you_mean
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.run_config import ADAPTER, USE_CASE
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.request import Request

_MOST_FOLDERS = 1000


def check_run_config(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """Findings of a run config; nothing where no pack, or more than one, lies beside it."""
    config = check.content
    if check.document is None or not isinstance(config, UseCaseRunConfig):
        return
    found = _pack_beside(check.document.path)
    if found is None:
        return
    folder, manifest = found
    places = check.document.places()
    names = [use_case.name for use_case in manifest.use_cases]
    if config.name not in names:
        yield USE_CASE.finding(
            f"the pack in {folder.name!r} has no use case {config.name!r}",
            replace(places(("name",)), use_case=config.name),
            did_you_mean(config.name, names),
        )
        return
    slots = next(u.slots for u in manifest.use_cases if u.name == config.name)
    adapters = [slot.adapter for slot in slots]
    for index, adapter in enumerate(config.adapters):
        if adapter.name not in adapters:
            yield ADAPTER.finding(
                f"use case {config.name!r} of the pack in {folder.name!r} has no adapter "
                f"{adapter.name!r}",
                replace(
                    places(("adapters", index, "name")),
                    use_case=config.name,
                    adapter=adapter.name,
                ),
                did_you_mean(adapter.name, adapters),
            )


def _pack_beside(path: Path) -> tuple[Path, Manifest] | None:
    """The pack that the file is for; one that cannot be read is for its own check to report."""
    try:
        folder = _folder_of_pack(path.absolute().parent)
        return None if folder is None else (folder, read_manifest(folder))
    except (LoraQuantError, OSError):
        return None


def _folder_of_pack(folder: Path) -> Path | None:
    if (folder / MANIFEST_FILE).is_file():
        return folder
    found = []
    for number, below in enumerate(folder.iterdir()):
        if number == _MOST_FOLDERS:
            return None
        if (below / MANIFEST_FILE).is_file():
            found.append(below)
    return found[0] if len(found) == 1 else None
