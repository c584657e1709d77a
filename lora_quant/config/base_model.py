"""The base of all models: strict, frozen, no unknown keys, no NaN, and errors a person can read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from math import isfinite
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StringConstraints,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from lora_quant.config.located import LocatedDocument
from lora_quant.config.plain_values import PathParts
from lora_quant.config.validation_errors import MOST_PROBLEMS, config_error

M = TypeVar("M", bound=BaseModel)

STRICT = ConfigDict(
    strict=True,
    frozen=True,
    allow_inf_nan=False,
    validate_by_alias=True,
    validate_by_name=True,
    serialize_by_alias=True,
    protected_namespaces=(),
)


class ConfigModel(BaseModel):
    """A strict, frozen model. In Python its fields go by name, in files by alias.

    Whatever is wrong with the values arrives as one ConfigError that lists every problem.
    """

    model_config = ConfigDict(**STRICT, extra="forbid")

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic derives from the fields

        def __init__(self, /, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                document = LocatedDocument(data)
                raise config_error(error, type(self), document, by_alias=False) from None

        # Without this mark pydantic would call __init__ for nested models as well, and their
        # problems would no longer be collected into one error.
        __init__.__pydantic_base_init__ = True


def from_document(model: type[M], document: LocatedDocument) -> M:
    """The model of a document, by the keys of files; ConfigError with line and column otherwise."""
    try:
        return model.model_validate(document.value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise config_error(error, model, document, by_alias=True) from None


def to_document(model: BaseModel, *, exclude_none: bool = False) -> Any:
    """The model as values for `dump_json` and `dump_yaml`, by the keys of files."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=exclude_none)


def problem(path: PathParts, message: str, hint: str, value: Any) -> InitErrorDetails:
    """One problem for `raise_problems`; `path` is relative to the model that validates."""
    # The texts go in as context, since a brace in them must not be taken for a placeholder.
    error = PydanticCustomError("rule", "{text}", {"text": message, "hint": hint})
    return InitErrorDetails(type=error, loc=path, input=value)


def raise_problems(title: str, problems: Iterable[InitErrorDetails]) -> None:
    """Raise the problems that a validator found, if there are any.

    Of very many the first are enough, and each may cost a look at all names of the file.
    """
    found = list(islice(problems, MOST_PROBLEMS))
    if found:
        raise ValidationError.from_exception_data(title, found)


def _to_path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("path_type", "expected a path as text")
    if not value or "\0" in value:
        raise PydanticCustomError("path_type", "expected a path, which is not empty")
    return Path(value)


def _portable(path: Path) -> str:
    return path.as_posix()


def _check_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticKnownError("float_type")
    try:
        finite = isfinite(value)
    except OverflowError:  # an int beyond the range of a double
        finite = False
    if not finite:
        raise PydanticKnownError("finite_number")
    return value


Number = Annotated[int | float, BeforeValidator(_check_number, json_schema_input_type=float)]
"""A finite number that stays an int if it was one."""

NonEmpty = Annotated[str, StringConstraints(min_length=1)]

PathField = Annotated[
    Path,
    BeforeValidator(_to_path, json_schema_input_type=NonEmpty),
    PlainSerializer(_portable, return_type=str),
]
"""A path, written with forward slashes. Text becomes a Path; empty text is refused."""

PathOrTextField = Annotated[
    Path | str,
    BeforeValidator(_to_path, json_schema_input_type=NonEmpty),
    PlainSerializer(_portable, return_type=str),
]
"""A path that may be given as text in Python too; it becomes a Path."""


def resolve_path(path: Path, folder: Path) -> Path:
    """`path` as seen from `folder`, without `..` unless a link makes `..` lead elsewhere."""
    joined = folder / path
    if ".." not in joined.parts:
        return joined
    shorter = Path(os.path.normpath(joined))
    return shorter if os.path.realpath(shorter) == os.path.realpath(joined) else joined


def relative_path(path: Path, folder: Path) -> Path:
    """`path` relative to `folder`, or absolute if there is no such relative path that is true.

    There is none between two drives, and none where a link makes `..` lead elsewhere.
    """
    absolute = resolve_path(path, Path.cwd())
    try:
        candidate = Path(os.path.relpath(absolute, folder))
    except ValueError:
        return absolute
    reached = os.path.realpath(folder / candidate)
    return candidate if reached == os.path.realpath(path) else absolute


def is_relative_text(text: str) -> bool:
    """Whether a path text is relative, has forward slashes on every platform, and no NUL."""
    return not (
        PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).drive
        or PureWindowsPath(text).root
        or "\\" in text
        or "\0" in text
    )
