"""Plain YAML scalars by the core schema of YAML 1.2.

`1e-3` is a float and `010` is ten; `off`, `yes`, `1:30` and `2024-01-01` stay text.
"""

from __future__ import annotations

import re
from math import isfinite

from lora_quant.config.plain_values import MAX_WHOLE, too_large
from lora_quant.errors import cut

_LONGEST_WHOLE = 1000
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def resolve(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar; ValueError with a reason if it is refused."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return _whole(text, 10)
    if _OCTAL.fullmatch(text):
        return _whole(text, 0)
    if _HEX.fullmatch(text):
        return _whole(text, 0)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not accepted")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not isfinite(number):
            raise ValueError(f"{cut(text, most=40)} is beyond the range of a double")
        return number
    return text


def _whole(text: str, base: int) -> int:
    # Longer texts are not worth the time to convert, which grows with the square of the length.
    value = int(text, base) if len(text) <= _LONGEST_WHOLE else MAX_WHOLE + 1
    if abs(value) > MAX_WHOLE:
        raise ValueError(f"{cut(text, most=40)}: {too_large()}")
    return value


def is_plain_text(text: str) -> bool:
    """Whether an unquoted `text` reads back as text."""
    return not (
        text in _NULL
        or text in _TRUE
        or text in _FALSE
        or any(p.fullmatch(text) for p in (_INT, _OCTAL, _HEX, _NOT_FINITE, _FLOAT))
    )
