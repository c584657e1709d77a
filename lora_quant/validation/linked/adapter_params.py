"""An adapter JSON against the weights in its folder: rank, alpha and target modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.adapter_params import OTHER_WEIGHTS
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.linked.adapters_of import contradictions
from lora_quant.validation.request import Request


def check_adapter_params(check: DocumentCheck, _request: Request) -> Iterator[Finding]:
    """Findings of an adapter JSON; nothing where no adapter, or more than one, lies beside it."""
    params = check.content
    if check.document is None or not isinstance(params, AdapterParamsConfig):
        return
    rules = plugins.Instances(plugins.LOWERING_RULES)
    try:
        adapter = load_adapter(params.name, check.document.path.parent, rules)
    except LoraQuantError:
        return  # no weights, or weights that their own check speaks of
    found = list(contradictions(params, adapter))
    if not found:
        return
    places = check.document.places()
    for error in found:
        field = (error.where.field or "target_modules").replace("lora_alpha", "alpha")
        field = "rank" if field == "r" else field
        where = replace(places((field,)), adapter=params.name, module=error.where.module)
        weights = adapter.checkpoint.tensors.path.name
        yield OTHER_WEIGHTS.finding(f"{error.message}: {weights}", where, error.hint)
