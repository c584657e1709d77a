"""Properties of the document door: reading gives back what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.config.documents import dump_json, dump_yaml, parse_json, parse_yaml
from lora_quant.config.plain_values import MAX_WHOLE
from lora_quant.errors import ConfigError

ODD = [
    "1e-3",
    "off",
    "yes",
    "1:30",
    "010",
    "0o7",
    "<<",
    "=",
    "~",
    "null",
    "2020-01-01",
    "#",
    "&a",
    "*a",
    "%x",
    "---",
    "...",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [*ODD, "", "- a", "a: b", "? x", "! x", "\ufeffx", "a\r\nb", "\x85", " a "]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_WHOLE, MAX_WHOLE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=15,
)
HOSTILE = (
    st.text() | st.binary() | st.text("{}[],:\"' \n-&*!ab|>?%1.e#\\u0") | st.text('{}[],:"\\aN1 \n')
)


@given(VALUES)
def test_yaml_round_trip(value: Any) -> None:
    assert typed(parse_yaml(dump_yaml(value))) == typed(value)


@given(VALUES)
def test_json_round_trip(value: Any) -> None:
    assert typed(parse_json(dump_json(value))) == typed(value)


@given(VALUES)
def test_json_is_yaml(value: Any) -> None:
    # Not for text with DEL or C1 controls, which JSON allows as they are and YAML does not.
    text = dump_json(value)
    if all(c.isprintable() or c == "\n" for c in text):
        assert typed(parse_yaml(text)) == typed(value)


@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
@given(text=HOSTILE)
def test_arbitrary_input_raises_nothing_but_config_errors(
    parse: Callable[[str | bytes], Any], text: str | bytes
) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)


def typed(value: Any) -> Any:
    """The value with the type of each scalar, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value
