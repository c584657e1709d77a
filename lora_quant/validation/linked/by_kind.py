"""Which check holds a file of a kind against the files and the graph that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.kinds import ENCODINGS, Kind
from lora_quant.validation.linked.adapter_params import check_adapter_params
from lora_quant.validation.linked.attach_map import check_attach_map
from lora_quant.validation.linked.encodings import check_encodings
from lora_quant.validation.linked.importer_config import check_importer_config
from lora_quant.validation.linked.lora_config import check_lora_config
from lora_quant.validation.linked.run_config import check_run_config
from lora_quant.validation.linked.tensor_list import check_tensor_list
from lora_quant.validation.request import Request

LinkedCheck = Callable[[DocumentCheck, Request], Iterable[Finding]]
"""Gets a document that its schema and its reader accept; never raises for content."""

LINKED: Mapping[Kind, LinkedCheck] = MappingProxyType(
    {
        **dict.fromkeys(ENCODINGS, check_encodings),
        Kind.LORA_CONFIG: check_lora_config,
        Kind.IMPORTER_CONFIG: check_importer_config,
        Kind.OUTPUT_FILES: check_importer_config,
        Kind.ATTACH_POINTS: check_attach_map,
        Kind.ADAPTER_PARAMS: check_adapter_params,
        Kind.RUN_CONFIG: check_run_config,
        Kind.TENSOR_LIST: check_tensor_list,
    }
)
