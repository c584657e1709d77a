"""Which check finds in a file of a kind what devices do not take.

Each check is imported with the first file of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.kinds import ENCODINGS, Kind
from lora_quant.validation.request import Request

DeviceCheck = Callable[[DocumentCheck, Request], Iterable[Finding]]
"""Gets a document that its schema and its reader accept; never raises for content."""


def _encodings(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.device.encodings import check_encodings

    return check_encodings(check, request)


def _lora_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.device.configs import check_lora_config

    return check_lora_config(check, request)


def _importer_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.device.configs import check_importer_config

    return check_importer_config(check, request)


def _output_files(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.device.configs import check_output_files

    return check_output_files(check, request)


def _graph(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.device.graph import check_graph

    return check_graph(check, request)


DEVICE: Mapping[Kind, DeviceCheck] = MappingProxyType(
    {
        **dict.fromkeys(ENCODINGS, _encodings),
        Kind.LORA_CONFIG: _lora_config,
        Kind.IMPORTER_CONFIG: _importer_config,
        Kind.OUTPUT_FILES: _output_files,
        Kind.GRAPH: _graph,
    }
)
