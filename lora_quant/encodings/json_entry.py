"""Reading one JSON entry of an encodings file with errors that name the tensor and the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import MOST_NAME, EncodingsError, Where, short
from lora_quant.findings import Finding, Severity

T = TypeVar("T")

MOST_KEYS = 50
"""How many unknown keys of one file are told."""


@dataclass(frozen=True)
class JsonEntry:
    """The members of one entry; `path` is its place in the document."""

    members: Mapping[str, Any]
    tensor: str | None
    path: str

    @classmethod
    def of(cls, value: Any, *, tensor: str | None, path: str) -> JsonEntry:
        """EncodingsError unless `value` is an object."""
        if not isinstance(value, Mapping):
            raise EncodingsError(
                f"expected an object, got {describe(value)}",
                where=Where(tensor=tensor, field=path),
            )
        return cls(value, tensor, path)

    def fail(self, message: str, *, key: str | None = None, hint: str | None = None) -> NoReturn:
        """Raise an EncodingsError that names this entry."""
        path = self.path if key is None else f"{self.path}.{key}"
        raise EncodingsError(message, where=Where(tensor=self.tensor, field=path), hint=hint)

    def get(self, key: str) -> Any:
        """A member that has to be there."""
        if key not in self.members:
            self.fail(f"the entry has no {key!r}", hint="the file may be cut or of another version")
        return self.members[key]

    def text(self, key: str) -> str:
        """A member that has to be text."""
        value = self.get(key)
        if not isinstance(value, str):
            self.fail(f"expected text, got {describe(value)}", key=key)
        return value

    def choice(self, key: str, accepted: Mapping[str, T]) -> T:
        """The meaning of a text member out of a closed set."""
        value = self.get(key)
        if not isinstance(value, str) or value not in accepted:
            self.fail(
                f"got {describe(value)}, expected one of {', '.join(map(repr, accepted))}", key=key
            )
        return accepted[value]

    def integer(self, key: str) -> int:
        """A member that has to be an integer."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"expected an integer, got {describe(value)}", key=key)
        return value

    def flag(self, key: str) -> bool:
        """A member that is a bool, or the text "True" or "False" as AIMET 0.6.1 writes it."""
        value = self.get(key)
        if isinstance(value, str) and value in ("True", "False", "true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            self.fail(f'expected true, false, "True" or "False", got {describe(value)}', key=key)
        return value

    def numbers(self, key: str) -> NDArray[np.float64]:
        """A number, or a list of them nested to any depth, as an array of that shape."""
        try:
            return number_array(self.get(key))
        except _NotNumbersError as error:
            self.fail(str(error), key=key)

    def build(self, make: Callable[[], T]) -> T:
        """The result of `make`, whose EncodingsErrors get the place of this entry."""
        try:
            return make()
        except EncodingsError as error:
            raise EncodingsError(
                error.message,
                where=replace(
                    error.where, tensor=self.tensor, field=error.where.field or self.path
                ),
                hint=error.hint,
            ) from None


_MOST_AXES: Final = 32
"""Arrays of numpy 1 have no more axes; numpy 2 has 64."""


class _NotNumbersError(Exception):
    pass


def number_array(value: Any) -> NDArray[np.float64]:
    """Numbers nested in lists of equal lengths as float64; bools and text are not numbers."""
    flat: Sequence[Any] = value if type(value) is list else [value]
    shape = [len(flat)] if type(value) is list else []
    while flat and type(flat[0]) is list:
        if len(shape) == _MOST_AXES:
            raise _NotNumbersError(f"lists are nested more than {_MOST_AXES} deep")
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) != 1:
            raise _NotNumbersError("the lists do not have equal lengths")
        shape.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    others = set(map(type, flat)) - {float, int}
    if others:
        odd = next(item for item in flat if type(item) in others)
        raise _NotNumbersError(f"expected a number, got {describe(odd)}")
    try:
        return np.array(flat, dtype=np.float64).reshape(shape)
    except OverflowError:
        raise _NotNumbersError("a number is too large for a double") from None


def describe(value: Any) -> str:
    """A short text for a JSON value in an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return short(value, most=60)


@dataclass
class UnknownKeys:
    """Collects entry members that are not read, so that they are reported and not just lost."""

    first: dict[str, str | None] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def note(self, keys: Iterable[str], tensor: str | None) -> None:
        """Members of `tensor`'s entry that the reader does not know."""
        for key in sorted(keys):
            self.first.setdefault(key, tensor)
            self.count[key] = self.count.get(key, 0) + 1

    def findings(self) -> tuple[Finding, ...]:
        """One finding per key, of very many the first `MOST_KEYS` and one with the number left."""
        told = [
            _unknown(
                f"the key {short(key, most=MOST_NAME)} of {self.count[key]} entries is not known "
                "and not carried over",
                tensor,
            )
            for key, tensor in islice(self.first.items(), MOST_KEYS)
        ]
        rest = len(self.first) - len(told)
        if rest:
            told.append(
                _unknown(f"{rest} more keys of entries are not known and not carried over", None)
            )
        return tuple(told)


def _unknown(message: str, tensor: str | None) -> Finding:
    return Finding("encodings/unknown-key", Severity.WARNING, message, Where(tensor=tensor))
