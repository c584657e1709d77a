"""One document: its schema first, then the reader that a build would use.

The reader sees what a schema cannot say: a name that is given twice, one strength per adapter, an
encoding whose parts do not fit each other. It runs only on a document that its schema accepts,
since it would repeat the problems.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import OpenedDocument, open_document
from lora_quant.validation.documents.readers import READERS
from lora_quant.validation.documents.recognise import recognise, unrecognised
from lora_quant.validation.documents.schema_check import Depth, check_schema
from lora_quant.validation.documents.seal import check_seal
from lora_quant.validation.documents.text_places import with_lines
from lora_quant.validation.from_errors import findings_of
from lora_quant.validation.kinds import ENCODINGS, SCHEMA_NAMES, Kind

if TYPE_CHECKING:
    from lora_quant.encodings.encoding_file import EncodingFile


@dataclass(frozen=True, eq=False)
class DocumentCheck:
    """What became of one document.

    kind: None if it cannot be read or is not known. content: what the reader made of it, None if
    there is an error.
    """

    kind: Kind | None
    findings: tuple[Finding, ...]
    document: OpenedDocument | None = None
    content: Any = None


def check_document(
    path: Path,
    *,
    shown: Path | None = None,
    kind: Kind | None = None,
    depth: Depth = Depth.FULL,
    unknown: Severity = Severity.ERROR,
) -> DocumentCheck:
    """Check the file at `path`, as the given kind or as what it is recognised to be.

    `shown` is the path to name in findings; `unknown` is how much a document of no known kind
    matters.
    """
    shown = shown or path
    try:
        document = open_document(path, shown)
    except LoraQuantError as error:
        return DocumentCheck(kind, findings_of(error, shown=shown))
    kind = kind or recognise(document.value, path)
    if kind is None:
        finding = unrecognised(shown, document.value, severity=unknown)
        return DocumentCheck(None, (finding,), document)
    findings = check_schema(document, kind, depth) if kind in SCHEMA_NAMES else ()
    if findings or kind not in (*READERS, *ENCODINGS):
        return DocumentCheck(kind, findings, document)
    try:
        if kind in ENCODINGS:
            file = _encodings(document)
            noticed = (replace(f, where=replace(f.where, file=shown)) for f in file.findings)
            return DocumentCheck(kind, tuple(with_lines(noticed, document)), document, file)
        content = READERS[kind](path)
    except LoraQuantError as error:
        refused = findings_of(error, shown=shown)
        return DocumentCheck(kind, tuple(with_lines(refused, document)), document)
    if kind is Kind.MANIFEST:
        findings = check_seal(path, shown=shown)
    return DocumentCheck(kind, findings, document, content)


def _encodings(document: OpenedDocument) -> EncodingFile:
    """Encodings are the largest files: what was parsed for the schema serves the reader."""
    from lora_quant.encodings.files import encodings_of

    return encodings_of(document.value, source=document.path)
