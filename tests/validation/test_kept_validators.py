"""Keeping the validators of the parts of a schema changes no error of the library."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lora_quant.config.documents import read_json, read_yaml
from lora_quant.config.schema_files import ALL_SCHEMAS, load_schema
from lora_quant.validation.documents.kept_validators import kept_validator
from tests.sample import SAMPLE

ENTRY = {"name": "x", "bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False}
ENTRY |= {"offset": [-128], "scale": [0.1]}
BLOCKS = {**ENTRY, "name": "w", "enc_type": "PER_BLOCK", "block_size": 4}
SOUND: dict[str, Any] = {
    "lora-config": read_yaml(SAMPLE / "lora_config.yaml"),
    "attach-points": read_json(SAMPLE / "attach_points.json"),
    "peft-adapter-config": read_json(SAMPLE / "adapters" / "tone" / "adapter_config.json"),
    "run-config": {"name": "both", "adapters": [{"name": "tone", "alpha": 0.5}]},
    "aimet-encodings-1.0.0": {
        "version": "1.0.0",
        "activation_encodings": [ENTRY],
        "param_encodings": [BLOCKS, {"name": "f", "dtype": "FLOAT", "bw": 16}],
    },
    "aimet-encodings-0.6.1": {
        "version": "0.6.1",
        "activation_encodings": {
            "x": [{"bitwidth": 8, "dtype": "int", "min": 0.0, "max": 1.0, "scale": 0.1}]
        },
        "param_encodings": {"w": [{"bitwidth": 16, "dtype": "float"}]},
    },
}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 8, 8.5, 1e300, "", "x", "FLOAT", "null", [], {}, [None], {"x": [1]}]
)


def problems(validator: Any, value: Any) -> list[Any]:
    return [
        (e.message, list(e.absolute_path), list(e.absolute_schema_path), e.validator, e.context)
        for e in map(plain, validator.iter_errors(value))
    ]


def plain(error: Any) -> Any:
    """Errors within an error, which compare by identity, as their texts."""
    error.context = sorted(str((e.message, list(e.absolute_path))) for e in error.context)
    return error


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


@pytest.mark.parametrize("name", SOUND)
@settings(max_examples=25)
@given(data=st.data())
def test_errors_are_those_of_the_library(name: str, data: st.DataObject) -> None:
    schema = load_schema(name)
    value = copy.deepcopy(SOUND[name])
    for _ in range(data.draw(st.integers(0, 3))):
        path = data.draw(st.sampled_from(list(paths(value))))
        value = changed(value, path, copy.deepcopy(data.draw(VALUES)))
        if isinstance(value, dict) and data.draw(st.booleans()):
            value["unknown"] = 1
    expected = problems(Draft202012Validator(schema), value)
    kept = kept_validator(schema, {})
    assert problems(kept, value) == expected
    assert problems(kept, value) == expected, "the second look differs"


@pytest.mark.parametrize("name", ALL_SCHEMAS)
def test_every_reference_leads_into_its_own_schema(name: str) -> None:
    schema = load_schema(name)
    assert "$dynamicRef" not in json.dumps(schema)
    for path in paths(schema):
        if path and path[-1] == "$ref":
            value: Any = schema
            for key in path:
                value = value[key]
            if isinstance(value, str):
                assert value.removeprefix("#/$defs/") in schema["$defs"]
