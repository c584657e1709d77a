"""Which check holds a file of a kind against the files and the graph that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.document_check import DocumentCheck
from lora_quant.validation.kinds import Kind
from lora_quant.validation.request import Request

LinkedCheck = Callable[[DocumentCheck, Request], Iterable[Finding]]
"""Gets a document that its schema and its reader accept; never raises for content."""

LINKED: Mapping[Kind, LinkedCheck] = MappingProxyType({})
