"""Which check holds a file of a kind against the files and the graph that it names.

Each check is imported with the first file of its kind: most of them load NumPy and onnx, and a
folder of configurations alone needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.kinds import ENCODINGS, Kind
from lora_quant.validation.request import Request

LinkedCheck = Callable[[DocumentCheck, Request], Iterable[Finding]]
"""Gets a document that its schema and its reader accept; never raises for content."""


def _encodings(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.encodings import check_encodings

    return check_encodings(check, request)


def _lora_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.lora_config import check_lora_config

    return check_lora_config(check, request)


def _importer_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.importer_config import check_importer_config

    return check_importer_config(check, request)


def _attach_map(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.attach_map import check_attach_map

    return check_attach_map(check, request)


def _adapter_params(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.adapter_params import check_adapter_params

    return check_adapter_params(check, request)


def _peft_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.peft_config import check_peft_config

    return check_peft_config(check, request)


def _run_config(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.run_config import check_run_config

    return check_run_config(check, request)


def _tensor_list(check: DocumentCheck, request: Request) -> Iterable[Finding]:
    from lora_quant.validation.linked.tensor_list import check_tensor_list

    return check_tensor_list(check, request)


LINKED: Mapping[Kind, LinkedCheck] = MappingProxyType(
    {
        **dict.fromkeys(ENCODINGS, _encodings),
        Kind.LORA_CONFIG: _lora_config,
        Kind.IMPORTER_CONFIG: _importer_config,
        Kind.OUTPUT_FILES: _importer_config,
        Kind.ATTACH_POINTS: _attach_map,
        Kind.ADAPTER_PARAMS: _adapter_params,
        Kind.PEFT_CONFIG: _peft_config,
        Kind.RUN_CONFIG: _run_config,
        Kind.TENSOR_LIST: _tensor_list,
    }
)
