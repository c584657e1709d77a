"""`adapter_config.json` as PEFT writes it: a flat object, read tolerantly, used strictly.

The fields are kept as they are. A rule asks for the ones it uses by name and type, and an answer of
the wrong type is an AdapterError that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_quant.config.documents import read_json
from lora_quant.errors import AdapterError, Where, short

CONFIG_FILE = "adapter_config.json"
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class PeftConfig:
    """One adapter's configuration. `fields` holds every field of the file, in its order."""

    file: Path
    peft_type: str
    fields: Mapping[str, Any]

    def where(self, field: str) -> Where:
        """The place of one field, for errors and findings."""
        return Where(file=self.file, field=field)

    def is_neutral(self, field: str) -> bool:
        """Whether a field is not in use: absent, null, false, `{}` or `[]`."""
        value = self.fields.get(field)
        return value is None or value is False or value in ({}, [])

    def flag(self, field: str, default: bool = False) -> bool:
        """A bool; `default` (PEFT's own) when the field is absent or null."""
        value = self._given(field, default)
        if not isinstance(value, bool):
            raise self._wrong(field, value, "true or false")
        return value

    def positive(self, field: str, default: int) -> int:
        """A whole number of at least 1; `default` (PEFT's own) when the field is absent."""
        value = self._given(field, default)
        if not _is_positive(value):
            raise self._wrong(field, value, "a whole number of at least 1")
        return int(value)

    def whole(self, field: str, default: int) -> int:
        """A whole number of any sign; `default` (PEFT's own) when the field is absent."""
        value = self._given(field, default)
        if type(value) is not int:
            raise self._wrong(field, value, "a whole number")
        return int(value)

    def number(self, field: str, default: float) -> float:
        """A finite number, whole or not; `default` (PEFT's own) when the field is absent."""
        value = self._given(field, default)
        if not _is_number(value):
            raise self._wrong(field, value, "a finite number")
        return float(value)

    def positive_patterns(self, field: str) -> Mapping[str, int]:
        """Module pattern -> whole number of at least 1, in file order; empty when absent."""
        return self._patterns(field, _is_positive, "a whole number of at least 1")

    def number_patterns(self, field: str) -> Mapping[str, float]:
        """Module pattern -> finite number, in file order; empty when absent."""
        return self._patterns(field, _is_number, "a finite number")

    def names(self, field: str) -> str | tuple[str, ...] | None:
        """A text as it is, a list of texts as a tuple, None when absent."""
        value = self.fields.get(field)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._wrong(field, value, "a text or a list of texts")
        return tuple(value)

    def indices(self, field: str) -> tuple[int, ...]:
        """A whole number from 0, or a list of them, as a tuple; empty when absent."""
        value = self.fields.get(field)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int and v >= 0 for v in listed):
            raise self._wrong(field, value, "a whole number from 0 or a list of them")
        return tuple(listed)

    def _given(self, field: str, default: Any) -> Any:
        value = self.fields.get(field)
        return default if value is None else value

    def _patterns(
        self, field: str, accepted: Callable[[Any], bool], expected: str
    ) -> Mapping[str, Any]:
        value = self._given(field, {})
        if not isinstance(value, dict):
            raise self._wrong(field, value, "an object of module pattern to number")
        for pattern, entry in value.items():
            if not accepted(entry):
                raise self._wrong(f"{field}[{pattern!r}]", entry, expected)
        return MappingProxyType(value)

    def _wrong(self, field: str, value: Any, expected: str) -> AdapterError:
        return AdapterError(
            f"{field} is {short(value)}, expected {expected}",
            where=self.where(field),
            hint="save the adapter again with PEFT, or correct the field",
        )


def read_peft_config(file: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises InputMissingError when it is missing, ConfigError when it is not JSON and AdapterError
    when it is no PEFT configuration.
    """
    document = read_json(file, max_bytes=_MAX_BYTES)
    if not isinstance(document, dict):
        raise AdapterError(
            f"the file holds a {type(document).__name__}, expected an object",
            where=Where(file=file),
            hint=f"a PEFT adapter describes itself in {CONFIG_FILE}",
        )
    peft_type = document.get("peft_type")
    if not isinstance(peft_type, str):
        raise AdapterError(
            f"peft_type is {short(peft_type)}, expected the name of an adapter kind",
            where=Where(file=file, field="peft_type"),
            hint='a LoRA adapter says "peft_type": "LORA"; is this an adapter?',
        )
    return PeftConfig(file, peft_type, MappingProxyType(document))


def _is_positive(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    # an integer beyond the largest double has no place in a scale either
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)
