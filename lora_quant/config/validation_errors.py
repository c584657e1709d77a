"""What pydantic says about a value, in the words of a person who reads the file.

1 validation error for LoraConfig          use-case[0].nmae: unknown key 'nmae'
use-case.0.nmae                      ->      where: lora.yaml:7:5, field 'use-case[0].nmae'
  Extra inputs are not permitted             hint:  did you mean 'name'?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lora_quant.config.located import LocatedDocument, path_text
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import ConfigError, did_you_mean

_EXPECTED: dict[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
}

_WANTED: dict[str, type] = {
    "string_type": str,
    "list_type": list,
    "tuple_type": list,
    "bool_type": bool,
    "int_type": float,
    "float_type": float,
}
_BOOL_HINT = "write true or false without quotes; yes, no, on and off are text"
_LIST_HINT = "put it in [ ], or write one '- item' a line"
_QUOTES_HINT = "put it in quotes to make it text"


MOST_PROBLEMS = 50
"""How many problems of one document are told."""


@dataclass(frozen=True)
class Problem:
    """One problem: where it is, what is wrong, and what to do."""

    path: PathParts
    message: str
    hint: str | None

    @property
    def text(self) -> str:
        """Path and message on one line."""
        return f"{path_text(self.path)}: {self.message}" if self.path else self.message


def config_error(
    error: ValidationError,
    model: type[BaseModel],
    document: LocatedDocument,
    *,
    by_alias: bool,
) -> ConfigError:
    """All problems of a pydantic error as one ConfigError at the place of the first one.

    Its `parts` are the problems, each at its own place.
    """
    problems = [
        _problem(detail, model, document.value, by_alias)
        for detail in error.errors(include_url=False)[:MOST_PROBLEMS]
    ]
    problems.sort(key=lambda p: document.position(p.path) or (0, 0))
    parts = tuple(
        ConfigError(
            p.message, where=document.where(p.path, field=path_text(p.path) or None), hint=p.hint
        )
        for p in problems
    )
    result = ConfigError(_text(problems, document), where=parts[0].where, hint=_hint(problems))
    result.parts = parts
    return result


def _text(problems: list[Problem], document: LocatedDocument) -> str:
    if len(problems) == 1:
        return problems[0].text
    lines = [f"{len(problems)} problems"]
    for problem in problems:
        position = document.position(problem.path)
        place = "" if position is None else f"line {position[0]}:{position[1]}: "
        hint = f" ({problem.hint})" if problem.hint else ""
        lines.append(f"  {place}{problem.text}{hint}")
    return "\n".join(lines)


def _hint(problems: list[Problem]) -> str | None:
    return problems[0].hint if len(problems) == 1 else "correct each of them"


def _problem(detail: Any, model: type[BaseModel], value: Any, by_alias: bool) -> Problem:
    kind: str = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    path = _path_in_value(detail["loc"], value, model)
    if kind == "extra_forbidden":
        accepted = accepted_keys(model_at(model, path[:-1]), by_alias=by_alias)
        return Problem(path, f"unknown key {path[-1]!r}", did_you_mean(str(path[-1]), accepted))
    if kind == "missing":
        return Problem(path, "the key is missing", "add it; it has no default")
    if kind == "rule":
        return Problem(path, context["text"], context["hint"])
    got = describe(detail["input"])
    if kind == "path_type":
        return Problem(path, f"{detail['msg']}, got {got}", _type_hint(str, detail["input"]))
    expected = _EXPECTED.get(kind)
    if expected is None:
        return Problem(path, f"{detail['msg']}, got {got}", None)
    hint = _type_hint(_WANTED.get(kind), detail["input"])
    return Problem(path, f"expected {expected.format_map(context)}, got {got}", hint)


def _type_hint(wanted: type | None, value: Any) -> str | None:
    """What a person most likely forgot when a value has the wrong type."""
    if wanted is str:
        return _QUOTES_HINT if isinstance(value, int | float) else None
    if wanted is list:
        return _LIST_HINT
    if wanted is bool:
        return _BOOL_HINT
    return number_hint(value) if wanted is float and isinstance(value, str) else None


def number_hint(text: str) -> str:
    """What to do about a text where a number is expected."""
    try:
        float(text)
    except ValueError:
        return "write a number, decimals behind a point"
    return "remove the quotes"


def _path_in_value(
    loc: tuple[str | int, ...], value: Any, model: type[BaseModel] | None
) -> PathParts:
    """`loc` spelled as in `value`, without the parts that name a branch of a union."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        if isinstance(value, list | tuple):
            if not isinstance(part, int):
                continue
            path.append(part)
            value = value[part] if part < len(value) else None
            continue
        name, field = _field(model, part)
        spellings = [str(part)] if field is None else [str(part), *_keys(name, field)]
        if isinstance(value, BaseModel):
            key = name
            value = getattr(value, name, None)
        elif isinstance(value, dict):
            key = next((s for s in spellings if s in value), str(part))
            if key not in value and field is None and index < len(loc) - 1:
                continue
            value = value.get(key)
        else:
            continue
        path.append(key)
        model = None if field is None else _model_in(field.annotation)
    return tuple(path)


def _field(model: type[BaseModel] | None, key: str | int) -> tuple[str, Any]:
    """Name and description of the field that is spelled `key`."""
    if model is not None:
        for name, field in model.model_fields.items():
            if key in _keys(name, field):
                return name, field
    return str(key), None


def model_at(model: type[BaseModel] | None, path: PathParts) -> type[BaseModel] | None:
    """The model of the object at `path`, or None if no model describes it."""
    for part in path:
        if isinstance(part, str):
            _, field = _field(model, part)
            model = None if field is None else _model_in(field.annotation)
    return model


def accepted_keys(model: type[BaseModel] | None, *, by_alias: bool) -> list[str]:
    """The keys of a model, spelled as in files or as in Python."""
    if model is None:
        return []
    return [_keys(name, f)[1 if by_alias else 0] for name, f in model.model_fields.items()]


def _keys(name: str, field: Any) -> list[str]:
    """A field's name, then its spellings in files."""
    alias = field.validation_alias
    spellings = getattr(alias, "choices", [alias or name])
    return [name, *(str(s) for s in spellings)]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def describe(value: Any) -> str:
    """A value in a few words, for the "got" of a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}..."
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return f"a {type(value).__name__}"
