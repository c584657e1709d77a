"""Checking whatever paths a person names: files, packs, and folders of both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.adapter_check import ADAPTER_SUFFIX, check_adapter, is_adapter_file
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.document_check import check_document
from lora_quant.validation.genie_check import check_genie
from lora_quant.validation.kinds import GENIE, Kind
from lora_quant.validation.lora_config_check import (
    TEXT_NAME,
    check_lora_config_text,
    is_lora_config_text,
)
from lora_quant.validation.opened import is_binary
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.pack.open_entries import open_entries

SUFFIXES = (".json", ".yaml", ".yml", ".encodings", ADAPTER_SUFFIX, TEXT_NAME)
"""Files whose names end in these are checked when a folder is named."""


def validate_paths(paths: Iterable[Path]) -> Validation:
    """Check files, packs, and every pack, JSON, YAML, encodings and adapter file below folders.

    Never raises for content. A file that was named and is of no known kind is an error; one that
    was met in a folder is a note.
    """
    return Validation(tuple(item for path in paths for item in _check(path)))


def _check(path: Path) -> Iterator[Checked]:
    if not path.is_dir():
        yield _check_file(path, unknown=Severity.ERROR)
        return
    found = False
    for item in _items_below(path):
        found = True
        yield _check_folder_item(item)
    if not found:
        finding = Finding(
            rule="recognise/nothing",
            severity=Severity.ERROR,
            message="the folder holds nothing that can be checked",
            where=Where(file=path),
            hint=f"looked for {MANIFEST_FILE} and files that end in {', '.join(SUFFIXES)}",
        )
        yield Checked(path, None, (finding,))


def _items_below(folder: Path) -> Iterator[Path]:
    """Packs and files below a folder; hidden folders and what links lead to are left out."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if MANIFEST_FILE in files:
            folders.clear()
            yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                yield here / name


def _check_folder_item(path: Path) -> Checked:
    if path.is_dir():
        return Checked(path, Kind.PACK, (*check_pack(path), *open_entries(path)))
    return _check_file(path, unknown=Severity.NOTE)


def _check_file(path: Path, *, unknown: Severity) -> Checked:
    if path.is_file() and is_adapter_file(path):
        return Checked(path, Kind.ADAPTER_FILE, check_adapter(path))
    if path.is_file() and is_lora_config_text(path):
        return Checked(path, Kind.QNN_LORA_CONFIG, check_lora_config_text(path))
    if path.is_file() and is_binary(path):
        finding = Finding(
            rule="recognise/binary",
            severity=unknown,
            message="this is no text: expected a JSON or YAML file, an adapter of ONNX Runtime, or "
            "a pack's folder",
            where=Where(file=path),
            hint="graphs and weights are checked as parts of a pack: name its folder",
        )
        return Checked(path, None, (finding,))
    result = check_document(path, unknown=unknown)
    findings = result.findings
    kind = result.kind
    if kind in GENIE and result.content is not None and result.document is not None:
        findings = (*findings, *check_genie(result.document, kind))
    return Checked(path, result.kind, findings)
