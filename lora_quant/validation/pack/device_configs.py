"""Configurations for the device in a pack: Genie's block, and texts for the QNN provider.

Each entry has to fit the pack: its use cases, the input for strengths, the slots. What the device
compiler alone knows may still be open (see open_entries).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_quant.config.genie import genie_blocks
from lora_quant.config.manifest_records import AlphaRecord, PackFile, TargetRecord
from lora_quant.config.placeholders import is_placeholder
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where, did_you_mean, some
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.files.lora_config_check import first_entry, line_findings, read_text
from lora_quant.validation.files.sections import NamedSection, check_sections
from lora_quant.validation.kinds import Kind
from lora_quant.validation.pack.view import PackView

GENIE_ROLE = "genie-lora"
TEXT_ROLE = "qnn-lora-config"
_REBUILD = "build the pack again"


def check_device_configs(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """Findings of both kinds of files of one target."""
    for file in view.files(target, GENIE_ROLE):
        checked = check_document(
            view.locate(file.path),
            shown=view.show(file.path),
            kind=Kind.GENIE_CONFIG,
            depth=view.depth,
        )
        yield from checked.findings
        if checked.content is not None and checked.document is not None:
            yield from _genie(view, target, file, checked.document)
    for file in view.files(target, TEXT_ROLE):
        yield from _text(view, file)


def _genie(
    view: PackView, target: TargetRecord, file: PackFile, document: OpenedDocument
) -> Iterator[Finding]:
    alpha = view.manifest.alpha_of(target)
    blocks = list(genie_blocks(document.value))
    if alpha is None or not blocks:
        got = "no lora block" if alpha is not None else "a lora block, and its graph no strengths"
        yield view.error("genie-alpha", f"the file has {got}", file.path, hint=_REBUILD)
        return
    places = document.places()
    for path, block in blocks:
        given = block["alpha-tensor-name"]
        if given != alpha.tensor:
            yield Finding(
                "pack/genie-alpha",
                Severity.ERROR,
                f"the strengths are fed to {given!r}, the input of the graph is {alpha.tensor!r}",
                places((*path, "alpha-tensor-name")),
                _REBUILD,
            )
        names = [adapter["name"] for adapter in block["adapters"]]
        known = [u.name for u in view.manifest.use_cases]
        missing = [name for name in known if name not in names]
        # One that is misspelt is reported where it stands, and is not missing.
        if len(missing) > len([name for name in names if name not in known]):
            yield Finding(
                "pack/genie-use-cases",
                Severity.ERROR,
                f"the block lacks use cases of the pack: {some(missing)}",
                places((*path, "adapters")),
                _REBUILD,
            )
        for index, adapter in enumerate(block["adapters"]):
            inside: PathParts = (*path, "adapters", index)
            for key, rule, message, hint in _adapter_problems(view, alpha, adapter):
                where = replace(places((*inside, key)), use_case=adapter["name"])
                yield Finding(f"pack/{rule}", Severity.ERROR, message, where, hint)
        sections = [
            (text, adapter["name"], places((*path, "adapters", index, "bin-sections", number)))
            for index, adapter in enumerate(block["adapters"])
            for number, text in enumerate(adapter["bin-sections"])
        ]
        yield from _sections(view, file, sections)


def _adapter_problems(
    view: PackView, alpha: AlphaRecord, adapter: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    """Key, rule, message and hint of what is wrong with one use case of the block."""
    known = [use_case.name for use_case in view.manifest.use_cases]
    if adapter["name"] not in known:
        yield (
            "name",
            "genie-use-cases",
            f"the use case {adapter['name']!r} is not one of the pack",
            did_you_mean(adapter["name"], known),
        )
        return
    alphas = adapter["alphas"]
    entries = math.prod(alpha.shape)
    if len(alphas) != entries:
        yield (
            "alphas",
            "genie-alphas",
            f"{len(alphas)} strengths are named, the input {alpha.tensor!r} has {entries}",
            _REBUILD,
        )
    elif alpha.layout == "slot":
        use_case = view.manifest.use_cases[known.index(adapter["name"])]
        for index, slot in enumerate(use_case.slots):
            if slot.adapter in alphas and alphas[index] != slot.adapter:
                yield (
                    "alphas",
                    "genie-alphas",
                    f"the strength {slot.adapter!r} is entry {alphas.index(slot.adapter)}, the "
                    f"adapter of that name has the slot {index}",
                    "it would set the strength of another adapter; " + _REBUILD,
                )


def _text(view: PackView, file: PackFile) -> Iterator[Finding]:
    shown = view.show(file.path)
    text = read_text(view.locate(file.path), shown)
    if isinstance(text, Finding):
        yield replace(text, where=replace(text.where, use_case=file.use_case))
        return
    yield from line_findings(text, shown)
    entry = first_entry(text)
    if entry is not None:
        where = Where(file=shown, line=1)
        yield from _sections(view, file, [(entry.section, str(file.use_case), where)])


def _sections(
    view: PackView, file: PackFile, sections: list[tuple[str, str, Where]]
) -> Iterator[Finding]:
    """Those that are filled in have to be there, and to be of one use case each."""
    filled = [
        NamedSection(text, owner, replace(where, use_case=owner))
        for text, owner, where in sections
        if not is_placeholder(text)
    ]
    folder: Path = view.locate(file.path).parent
    yield from check_sections("pack", filled, folder)
