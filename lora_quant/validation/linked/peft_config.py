"""A PEFT configuration and the weights that belong beside it.

adapters/tone/adapter_config.json alone  ->  adapter/no-weights
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_quant.adapters.files.checkpoint import config_without_weights
from lora_quant.errors import AdapterError, Where
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.adapter import NO_WEIGHTS
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.request import Request


def check_peft_config(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """A note if no weights lie beside the file; never raises for content."""
    if check.document is None:
        return
    try:
        alone = config_without_weights(check.document.path) is not None
    except (AdapterError, OSError):
        return  # several adapters, or a folder that cannot be listed: weights may be there
    if alone:
        where = Where(file=check.document.shown)
        yield NO_WEIGHTS.finding("no weights of the adapter lie beside its configuration", where)
