"""What a JSON schema says about a value, in the words of a person who reads the file.

{'rank': '8', ...} is not valid under     ->   expected a whole number, got the text '8'
any of the given schemas
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema.exceptions import ValidationError

from lora_quant.config.names import FOLDER_NAME_PATTERN, PLAIN_NAME_PATTERN
from lora_quant.config.plain_values import PathParts
from lora_quant.config.validation_errors import describe, number_hint
from lora_quant.errors import did_you_mean

_TYPES = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "object": "an object",
    "array": "a list",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {
    "minimum": "a number of at least {}",
    "maximum": "a number of at most {}",
    "exclusiveMinimum": "a number above {}",
    "exclusiveMaximum": "a number below {}",
    "minLength": "text of at least {} character(s)",
    "maxLength": "text of at most {} characters",
    "minItems": "at least {} item(s)",
    "maxItems": "at most {} item(s)",
}
_COUNTED = ("minItems", "maxItems")
_PATTERNS = {
    FOLDER_NAME_PATTERN: "a name that can be a folder on every system",
    PLAIN_NAME_PATTERN: "text without control characters",
    r"^(?![A-Za-z]:)[^/\\\x00][^\\\x00]*(?![\s\S])": "a relative path with forward slashes",
    "^[0-9a-f]{64}$": "64 lower-case hexadecimal digits",
}
"""Pattern of a schema -> what it means; any other is shown as it is."""

_ELSEWHERE = {
    "adapter_lora_config": "lora_config",
    "encodings": "quant_overrides",
    "lora_weights": "weights",
    "model": "model_name",
    "quant_overrides": "encodings",
    "weights": "lora_weights",
}
"""Key of another file of the flow, or of Python -> what the same thing is called in a file."""

_MOST_ALTERNATIVES = 12
_LONGEST_PATTERN = 60


@dataclass(frozen=True)
class Problem:
    """One problem: where it is in the document, what is wrong, and what to do."""

    path: PathParts
    message: str
    hint: str | None = None


def explain(error: ValidationError) -> Iterator[Problem]:
    """The problems that one error of a validator stands for."""
    path = tuple(error.absolute_path)
    keyword = error.validator
    rule: Any = error.validator_value
    value: Any = error.instance
    if keyword == "required":
        missing = next((k for k in rule if error.message.startswith(repr(k))), None)
        schema: Any = error.schema
        near = _misspelt(missing, value, schema)
        if near is None:
            yield Problem(path, f"the key {missing!r} is missing", "add it")
        elif schema.get("additionalProperties") is not False:
            # Elsewhere the unknown key is a problem of its own, at its own place.
            yield Problem(
                (*path, near), f"the key {missing!r} is missing", f"rename {near!r}, if it is meant"
            )
    elif keyword == "additionalProperties":
        yield from _unknown_keys(path, value, error.schema)
    elif keyword in ("oneOf", "anyOf"):
        yield from _no_alternative(path, error)
    elif keyword != "pattern" or not _has_wrong_length(value, error.schema):
        yield Problem(path, f"expected {_expected(error)}, got {_got(error)}", _hint(error))


def _expected(error: ValidationError) -> str:
    keyword = str(error.validator)
    rule: Any = error.validator_value
    if keyword == "type":
        return _either(_accepted_types(error))
    if keyword == "const":
        return describe(rule)
    if keyword == "enum":
        return _either([repr(v) if isinstance(v, str) else describe(v) for v in rule])
    if keyword in _BOUNDS:
        return _BOUNDS[keyword].format(rule)
    if keyword == "uniqueItems":
        return "each item once"
    if keyword == "pattern":
        return _PATTERNS.get(rule) or f"text that matches {_shortened(rule)}"
    if keyword == "not":
        return "none of the keys that exclude each other"
    return f"a value that the schema accepts ({keyword})"


def _got(error: ValidationError) -> str:
    value: Any = error.instance
    if error.validator in _COUNTED:
        return f"{len(value)}"
    if error.validator == "uniqueItems":
        repeated = next((v for i, v in enumerate(value) if v in value[:i]), None)
        return f"{describe(repeated)} again"
    return describe(value)


def _hint(error: ValidationError) -> str | None:
    """What a person most likely forgot; the schema's own description otherwise."""
    value: Any = error.instance
    if _is_newer(error):
        return "it was written by a newer lora-quant: update this one, or make the file again"
    if error.validator == "type":
        wanted: Any = error.validator_value
        hint = _type_hint(value, [wanted] if isinstance(wanted, str) else wanted)
        if hint is not None:
            return hint
    schema = error.schema
    description = schema.get("description") if isinstance(schema, Mapping) else None
    return f"the key stands for: {description}" if description else None


def _is_newer(error: ValidationError) -> bool:
    """Whether it is the version of the layout that is above what is known."""
    value: Any = error.instance
    known: Any = error.validator_value
    whole = type(value) is int and type(known) is int
    return list(error.absolute_path) == ["schema_version"] and whole and value > known


def _type_hint(value: Any, types: Sequence[str]) -> str | None:
    """What a person most likely forgot who gave a value of another type."""
    if isinstance(value, str) and not {"number", "integer"}.isdisjoint(types):
        return number_hint(value)
    if isinstance(value, int | float) and "string" in types:
        return "put it in quotes to make it text"
    if "array" in types and "object" not in types:
        return "make it a list of items" if isinstance(value, Mapping) else "put it in [ ]"
    return None


def _has_wrong_length(value: str, schema: Any) -> bool:
    """Whether the length is already reported, so that the pattern need not be."""
    return not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))


def _unknown_keys(path: PathParts, value: Any, schema: Any) -> Iterator[Problem]:
    known = list(schema.get("properties", ()))
    for key in value:
        if key in known:
            continue
        if schema.get("patternProperties"):
            yield Problem((*path, key), "expected a key without control characters")
        else:
            free = [name for name in known if name not in value]
            same = _ELSEWHERE.get(key)
            hint = f"here it is {same!r}" if same in free else did_you_mean(key, free or known)
            yield Problem((*path, key), f"unknown key {key!r}", hint)


def _misspelt(missing: str | None, value: Any, schema: Any) -> str | None:
    """The unknown key that stands for the missing one: another spelling of it.

    Where unknown keys are allowed, only hyphens and underscores may differ.
    """
    known = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False
    for key in value if missing else ():
        near = did_you_mean(key, [str(missing)]).startswith("did you mean")
        same = key.replace("_", "-") == str(missing).replace("_", "-")
        if key not in known and (same or (closed and near)):
            return str(key)
    return None


def _no_alternative(path: PathParts, error: ValidationError) -> Iterator[Problem]:
    """The alternative that was most likely meant, or all of them if none was begun."""
    forms = _forms(error)
    if forms:
        keys = list(dict.fromkeys(key for form in forms for key in form))
        wanted = _either([" with ".join(map(repr, form)) for form in forms])
        value: Any = error.instance
        given = " and ".join(repr(key) for key in keys if key in value)
        yield Problem(
            path,
            f"expected one of the keys {wanted}, got {given or 'none of them'}",
            "keep one" if given else "add one",
        )
        return
    accepted = _accepted_types(error)
    if accepted:
        text: Any = error.instance
        numbers = {_TYPES["number"], _TYPES["integer"]}.intersection(accepted)
        hint = number_hint(text) if isinstance(text, str) and numbers else None
        yield Problem(path, f"expected {_either(accepted)}, got {describe(text)}", hint)
        return
    begun = [
        errors
        for errors in _by_branch(error)
        if any(tuple(e.absolute_path) != path or not _accepted_types(e) for e in errors)
    ]
    if not begun:
        yield Problem(path, f"{describe(error.instance)} can be read in more than one way")
        return
    for inner in max(begun, key=lambda errors: (max(map(_depth, errors)), -len(errors))):
        yield from explain(inner)


def _accepted_types(error: ValidationError) -> list[str]:
    """The types that were wanted, if an error says that the value is of none of them."""
    rule: Any = error.validator_value
    if error.validator == "type":
        return [_TYPES.get(t, t) for t in ([rule] if isinstance(rule, str) else rule)]
    if error.validator not in ("oneOf", "anyOf"):
        return []
    value = tuple(error.absolute_path)
    found: dict[str, None] = {}
    for inner in error.context or ():
        types = _accepted_types(inner) if tuple(inner.absolute_path) == value else []
        if not types:
            return []
        found.update(dict.fromkeys(types))
    return list(found)


def _forms(error: ValidationError) -> list[Sequence[str]]:
    """The keys of each form of an object, if the alternatives are about which keys it has."""
    alternatives: Any = error.validator_value
    if not isinstance(error.instance, Mapping):
        return []
    return [branch["required"] for branch in alternatives if "required" in branch]


def _by_branch(error: ValidationError) -> list[list[ValidationError]]:
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    return list(branches.values())


def _depth(error: ValidationError) -> int:
    return len(error.absolute_path)


def _either(names: Sequence[str]) -> str:
    shown = list(names[:_MOST_ALTERNATIVES])
    if len(names) > len(shown):
        return ", ".join(shown) + f" or {len(names) - len(shown)} others"
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _shortened(pattern: str) -> str:
    return pattern if len(pattern) <= _LONGEST_PATTERN else f"{pattern[: _LONGEST_PATTERN - 3]}..."
