"""The fast look at long arrays says the same as the plain validator."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from lora_quant.config.schema_files import load_schema
from lora_quant.validation.documents.long_arrays import items_keyword, representatives

SCHEMA = load_schema("aimet-encodings-0.6.1")
PLAIN = Draft202012Validator(SCHEMA)
FAST = extend(Draft202012Validator, {"items": items_keyword(None)})(SCHEMA)  # type: ignore[no-untyped-call]

GOOD = {
    "bitwidth": 8,
    "dtype": "int",
    "is_symmetric": "True",
    "min": -12.8,
    "max": 12.7,
    "scale": 0.1,
    "offset": -128.0,
}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [8, 8.0, 8.5, -1, 0, 65, True, None, "True", "int", "float", 1e300, [], {}]
)
CHANGES = st.dictionaries(st.sampled_from([*GOOD, "other"]), VALUES, max_size=2)


def document(entries: list[Any]) -> dict[str, Any]:
    return {"version": "0.6.1", "activation_encodings": {}, "param_encodings": {"w": entries}}


def problems(validator: Any, value: Any) -> list[tuple[Any, ...]]:
    return [(*error.absolute_path, error.message) for error in validator.iter_errors(value)]


@given(st.lists(st.tuples(st.integers(0, 99), CHANGES), max_size=3))
def test_same_problems_as_item_by_item(changes: list[tuple[int, dict[str, Any]]]) -> None:
    entries: list[Any] = [{**GOOD, "scale": 0.1 + i} for i in range(100)]
    for index, change in changes:
        entries[index] = {**entries[index], **change}
    value = document(entries)
    assert problems(FAST, value) == problems(PLAIN, value)


def test_a_missing_key_in_the_middle() -> None:
    entries: list[Any] = [dict(GOOD) for _ in range(100)]
    del entries[50]["scale"]
    assert problems(FAST, document(entries)) == problems(PLAIN, document(entries)) != []


def test_few_stand_for_many() -> None:
    chosen = representatives([{**GOOD, "scale": 0.1 + i, "min": -i} for i in range(10_000)])
    assert chosen is not None
    assert len(chosen) < 40
    assert {0.1, 9999.1} <= {item["scale"] for item in chosen}


@pytest.mark.parametrize("items", [[1, 2], [{"a": [1]}], [{str(i): 0} for i in range(100)]])
def test_what_is_not_alike_has_no_representatives(items: list[Any]) -> None:
    assert representatives(items) is None
