"""A JSON schema by itself: whether it is one, by the dialect that it names."""

from __future__ import annotations

from collections.abc import Iterator

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for

from lora_quant.findings import Finding
from lora_quant.validation.catalogue.schema import JSON_SCHEMA
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.documents.schema_messages import explain


def check_json_schema(document: OpenedDocument) -> Iterator[Finding]:
    """The gravest problem of a schema; nothing that it refers to is looked up."""
    validator = validator_for(document.value, default=Draft202012Validator)
    error = best_match(validator(validator.META_SCHEMA).iter_errors(document.value))
    if error is not None:
        where = document.places()
        for problem in explain(error):
            yield JSON_SCHEMA.finding(problem.message, where(problem.path), problem.hint)
