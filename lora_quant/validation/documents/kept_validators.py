"""A class of jsonschema validators that makes the validator of each part of a schema once.

    {"$ref": "#/$defs/Entry"} for 10,000 entries  ->  one lookup and one validator, not 10,000

jsonschema makes one for every value that it looks at, which takes longer than looking. What a
keyword means stays with the library; only the way from a schema to its parts is kept. It holds for
schemas that are one document: no other one is named, and `$ref` leads to `#/$defs/...` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

_DEFINITIONS = "#/$defs/"


def kept_validator(schema: dict[str, Any], keywords: Mapping[str, Any]) -> Any:
    """The validator of a whole schema; `keywords` are functions in place of the library's.

    Its errors are the library's own, in the same order and with the same paths. The schema must
    stay as it is: its parts are known by their identity.
    """
    made: dict[int, Any] = {}

    def part(validator: Any, schema: Any) -> Any:
        found = made.get(id(schema))
        if found is None:
            found = made[id(schema)] = validator.evolve(schema=schema)
        return found

    def descend(
        validator: Any, instance: Any, schema: Any, path: Any = None, schema_path: Any = None
    ) -> Iterator[ValidationError]:
        for error in part(validator, schema).iter_errors(instance):
            if path is not None:
                error.path.appendleft(path)
            if schema_path is not None:
                error.schema_path.appendleft(schema_path)
            yield error

    def follow(validator: Any, ref: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        definition = schema["$defs"][ref.removeprefix(_DEFINITIONS)]
        yield from part(validator, definition).iter_errors(instance)

    def condition(validator: Any, test: Any, instance: Any, rule: Any) -> Iterator[ValidationError]:
        branch = "then" if part(validator, test).is_valid(instance) else "else"
        if branch in rule:
            yield from descend(validator, instance, rule[branch], schema_path=branch)

    replaced = {"$ref": follow, "if": condition, **keywords}
    kept = extend(Draft202012Validator, replaced)  # type: ignore[no-untyped-call]
    kept.descend = descend
    return kept(schema)
