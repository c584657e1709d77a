"""A document against its checked-in JSON schema, read by a validator that shares no code with us.

Long arrays are not looked at item by item (see long_arrays), since an encodings file holds millions
of them. With `Depth.QUICK`, of a long array of objects only both ends are checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from lora_quant.config.plain_values import PathParts
from lora_quant.config.schema_files import load_schema
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.kept_validators import kept_validator
from lora_quant.validation.documents.long_arrays import items_keyword
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.kinds import ENCODINGS, SCHEMA_NAMES, Kind

if TYPE_CHECKING:
    from jsonschema import ValidationError

    from lora_quant.validation.documents.schema_messages import Problem

MOST_FINDINGS = 50
"""Problems that are reported of one file; the others are counted."""

MOST_COUNTED = 1000
"""Finding a problem costs a hundred times as much as passing a sound entry."""

QUICK_ITEMS = 8
"""How many items at each end of an array of objects are checked with `Depth.QUICK`."""


class Depth(Enum):
    """How thoroughly to check: everything, or what can be done in little time after a build."""

    FULL = "full"
    QUICK = "quick"


def check_schema(
    document: OpenedDocument, kind: Kind, depth: Depth = Depth.FULL
) -> tuple[Finding, ...]:
    """One finding `schema/<name>` per problem, at most 50, then one with the number of others."""
    name = SCHEMA_NAMES[kind]
    problems = _problems(_validator(kind, depth).iter_errors(_complete(document, kind)))
    shown = list(islice(problems, MOST_FINDINGS))
    if not shown:
        return ()
    where = document.places()
    findings = [
        Finding(
            rule=f"schema/{name}",
            severity=Severity.ERROR,
            message=problem.message,
            where=_with_tensor(where(problem.path), kind, document.value, problem.path),
            hint=problem.hint,
        )
        for problem in shown
    ]
    findings.sort(key=lambda f: (f.where.line or 0, f.where.column or 0))
    rest = sum(1 for _ in islice(problems, MOST_COUNTED))
    if rest:
        findings.append(
            Finding(
                rule=f"schema/{name}",
                severity=Severity.ERROR,
                message=f"{'at least ' * (rest == MOST_COUNTED)}{rest} more problems in this file "
                "are not shown",
                where=Where(file=document.shown),
            )
        )
    return tuple(findings)


def _problems(errors: Iterable[ValidationError]) -> Iterator[Problem]:
    """The errors in words, which only a file with errors needs."""
    for error in errors:
        from lora_quant.validation.documents.schema_messages import explain

        yield from explain(error)


def _complete(document: OpenedDocument, kind: Kind) -> Any:
    """A file of 0.4.0 may leave out its version."""
    value = document.value
    if kind is Kind.ENCODINGS_0_6_1 and "version" not in value:
        return {**value, "version": "0.4.0"}
    return value


def _with_tensor(where: Where, kind: Kind, value: Any, path: PathParts) -> Where:
    """Names the tensor of an entry: in a list of entries its index says nothing to a person."""
    tensor: Any = None
    if kind is Kind.ENCODINGS_FRAGMENT:
        tensor = path[0] if path else None
    elif kind in ENCODINGS and len(path) > 1:
        tensor = path[1]
        if isinstance(tensor, int):
            entry = value[path[0]][tensor]
            tensor = entry.get("name") if isinstance(entry, Mapping) else None
    return replace(where, tensor=tensor) if isinstance(tensor, str) else where


@cache
def _validator(kind: Kind, depth: Depth) -> Any:
    items = items_keyword(QUICK_ITEMS if depth is Depth.QUICK else None)
    schema = _fragment_schema() if kind is Kind.ENCODINGS_FRAGMENT else _schema_of(kind)
    return kept_validator(schema, {"items": items})


def _schema_of(kind: Kind) -> dict[str, Any]:
    return load_schema(SCHEMA_NAMES[kind])


def _fragment_schema() -> dict[str, Any]:
    """Entries of 1.0.0 under their names, which they need not repeat."""
    definitions = _schema_of(Kind.ENCODINGS_1_0_0)["$defs"]
    entry = definitions["Entry"]
    required = [key for key in entry["required"] if key != "name"]
    return {
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/Entry"},
        "$defs": {**definitions, "Entry": {**entry, "required": required}},
    }
