"""One document: its schema first, then the reader that a build would use.

The reader sees what a schema cannot say: a name that is given twice, one strength per adapter, an
encoding whose parts do not fit each other. It runs only on a document that its schema accepts,
since it would repeat the problems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_quant.adapters.files.peft_config import read_peft_config
from lora_quant.config.adapter_params import read_adapter_params
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.genie import read_genie_config, read_genie_lora
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.manifest import read_manifest
from lora_quant.config.output_files import read_importer_config, read_output_files
from lora_quant.config.run_config import read_run_config
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import encodings_of
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import OpenedDocument, open_document
from lora_quant.validation.documents.schema_check import Depth, check_schema
from lora_quant.validation.documents.text_places import with_lines
from lora_quant.validation.found.recognise import recognise, unrecognised
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.kinds import ENCODINGS, SCHEMA_NAMES, Kind
from lora_quant.validation.pack.seal import check_seal

_READERS: dict[Kind, Callable[[Path], Any]] = {
    Kind.LORA_CONFIG: read_lora_config,
    Kind.ADAPTER_PARAMS: read_adapter_params,
    Kind.PEFT_CONFIG: read_peft_config,
    Kind.ATTACH_POINTS: read_attach_map,
    Kind.IMPORTER_CONFIG: read_importer_config,
    Kind.OUTPUT_FILES: read_output_files,
    Kind.RUN_CONFIG: read_run_config,
    # A changed manifest is a finding, and the rest of the pack is still worth a look.
    Kind.MANIFEST: partial(read_manifest, check_seal=False),
    Kind.GENIE_LORA: read_genie_lora,
    Kind.GENIE_CONFIG: read_genie_config,
}


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
        return DocumentCheck(kind, (finding_of(error, shown=shown),))
    kind = kind or recognise(document.value, path)
    if kind is None:
        finding = unrecognised(shown, document.value, severity=unknown)
        return DocumentCheck(None, (finding,), document)
    findings = check_schema(document, kind, depth) if kind in SCHEMA_NAMES else ()
    if findings or kind not in (*_READERS, *ENCODINGS):
        return DocumentCheck(kind, findings, document)
    try:
        # Encodings are the largest files: what was parsed for the schema serves the reader.
        is_encodings = kind in ENCODINGS
        content = (
            encodings_of(document.value, source=path) if is_encodings else _READERS[kind](path)
        )
    except LoraQuantError as error:
        refused = finding_of(error, shown=shown)
        return DocumentCheck(kind, tuple(with_lines([refused], document)), document)
    if kind is Kind.MANIFEST:
        findings = check_seal(path, shown=shown)
    if isinstance(content, EncodingFile):
        noticed = (replace(f, where=replace(f.where, file=shown)) for f in content.findings)
        findings = tuple(with_lines(noticed, document))
    return DocumentCheck(kind, findings, document, content)
