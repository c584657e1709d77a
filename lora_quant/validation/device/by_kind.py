"""Which check finds in a file of a kind what devices do not take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.device.configs import (
    check_importer_config,
    check_lora_config,
    check_output_files,
)
from lora_quant.validation.device.encodings import check_encodings
from lora_quant.validation.device.graph import check_graph
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.kinds import ENCODINGS, Kind
from lora_quant.validation.request import Request

DeviceCheck = Callable[[DocumentCheck, Request], Iterable[Finding]]
"""Gets a document that its schema and its reader accept; never raises for content."""

DEVICE: Mapping[Kind, DeviceCheck] = MappingProxyType(
    {
        **dict.fromkeys(ENCODINGS, check_encodings),
        Kind.LORA_CONFIG: check_lora_config,
        Kind.IMPORTER_CONFIG: check_importer_config,
        Kind.OUTPUT_FILES: check_output_files,
        Kind.GRAPH: check_graph,
    }
)
