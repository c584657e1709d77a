"""One thing to check: what it is, its form, the files that it names, and what devices take of it.

Item(tone.encodings)  ->  Checked(tone.encodings, AIMET encodings 1.0.0, findings)

A level beyond the form is looked at only if it is wanted and the form has no error: what cannot be
read cannot be compared.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.document_text import is_utf_16
from lora_quant.config.located import LocatedDocument
from lora_quant.errors import LoraQuantError, Where, cut
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.catalogue.defect import INTERNAL
from lora_quant.validation.catalogue.recognise import BINARY, LFS_POINTER
from lora_quant.validation.checked import Checked
from lora_quant.validation.device.by_kind import DEVICE
from lora_quant.validation.documents.document_check import DocumentCheck, check_document
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.files.by_kind import SINGLE
from lora_quant.validation.found.items import Item, Shape
from lora_quant.validation.found.recognise_file import is_lfs_pointer, read_head, recognise_file
from lora_quant.validation.from_errors import findings_of
from lora_quant.validation.kinds import GENIE, Kind
from lora_quant.validation.linked.by_kind import LINKED
from lora_quant.validation.request import Request
from lora_quant.validation.rule import Level


def check_item(item: Item, request: Request) -> Checked:
    """What was found of one item; never raises for content, nor for a defect of a check."""
    return _sorted_out(_checked(item, request))


def _checked(item: Item, request: Request) -> Checked:
    try:
        return _check(item, request)
    except LoraQuantError as error:
        return Checked(item.path, None, findings_of(error, shown=item.path))
    except Exception as error:  # a defect in one file's check leaves the others theirs
        message = f"{type(error).__name__}: {cut(str(error), most=200)}"
        return Checked(
            item.path,
            None,
            (INTERNAL.finding(message, Where(file=item.path)),),
            traceback=traceback.format_exc(limit=-20),
        )


def _sorted_out(checked: Checked) -> Checked:
    """What is wrong apart from what only describes; every finding with a hint if its rule has one.

    A hint "" is none on purpose.
    """
    rules = {f.rule: RULES.get(f.rule) for f in checked.findings}
    findings, contents = [], []
    for finding in checked.findings:
        rule = rules[finding.rule]
        if rule is not None and rule.describes:
            contents.append(finding)
        elif rule is not None and finding.hint is None:
            findings.append(replace(finding, hint=rule.mend))
        else:
            findings.append(finding)
    return replace(checked, findings=tuple(findings), contents=tuple(contents))


def _check(item: Item, request: Request) -> Checked:
    path = item.path
    if item.fault is not None:
        return Checked(path, None, (item.fault,))
    if item.shape is Shape.PACK:
        return Checked(path, Kind.PACK, _pack(path, request))
    if item.shape is Shape.ADAPTER:
        return _single(path, Kind.ADAPTER, request)
    head = read_head(path)
    if is_lfs_pointer(head):
        finding = LFS_POINTER.finding("Git LFS has not fetched this file", Where(file=path))
        return Checked(path, None, (finding,))
    kind = recognise_file(path, head, item.size)
    if kind is not None:
        return _single(path, kind, request)
    if b"\0" in head and not is_utf_16(head):
        finding = BINARY.finding(
            "this is no text, and no graph, weights or adapter that is known here", Where(file=path)
        )
        return Checked(path, None, (replace(finding, severity=item.unknown),))
    document = check_document(path, unknown=item.unknown)
    return Checked(path, document.kind, (*document.findings, *_further(document, request)))


def _pack(path: Path, request: Request) -> tuple[Finding, ...]:
    from lora_quant.validation.pack.belongs_to_base import check_belongs_to_base
    from lora_quant.validation.pack.check import check_pack
    from lora_quant.validation.pack.open_entries import open_entries

    found = check_pack(path, levels=request.levels)
    if request.base is not None and Level.CROSS_FILE in request.levels:
        found += check_belongs_to_base(path, request.base)
    return (*found, *open_entries(path))


def _single(path: Path, kind: Kind, request: Request) -> Checked:
    findings = SINGLE[kind](path)
    document = OpenedDocument(path, path, None, lambda: LocatedDocument(None, source=path))
    further = _further(DocumentCheck(kind, findings, document), request)
    return Checked(path, kind, (*findings, *further))


def _further(checked: DocumentCheck, request: Request) -> Iterator[Finding]:
    """The levels beyond the form of the file."""
    kind = checked.kind
    if kind is None or any(f.severity is Severity.ERROR for f in checked.findings):
        return
    if kind is Kind.JSON_SCHEMA and checked.document is not None:
        from lora_quant.validation.files.json_schema_check import check_json_schema

        yield from check_json_schema(checked.document)
    if kind in GENIE and checked.content is not None and checked.document is not None:
        from lora_quant.validation.files.genie_check import check_genie

        yield from check_genie(checked.document, kind)
    if Level.CROSS_FILE in request.levels and kind in LINKED:
        yield from LINKED[kind](checked, request)
    elif Level.DEVICE in request.levels and kind is Kind.LORA_CONFIG:
        # The passes of a build, which are run there, know some of what devices get wrong.
        yield from filter(_is_of_devices, LINKED[kind](checked, request))
    if Level.DEVICE in request.levels and kind in DEVICE:
        yield from DEVICE[kind](checked, request)


def _is_of_devices(finding: Finding) -> bool:
    rule = RULES.get(finding.rule)
    return rule is not None and rule.level is Level.DEVICE
