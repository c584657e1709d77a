"""Hostile headers, by name. Each is refused with what was got and what was expected."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.files.safetensors_header import header_length, parse_header
from lora_quant.errors import AdapterError

FILE = Path("x.safetensors")


def entry(
    begin: int = 0, end: int = 8, dtype: str = "F32", shape: list[int] | None = None
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": [begin, end]}


def parse(document: Any, data: int = 8) -> tuple[str, ...]:
    text = (document if isinstance(document, str) else json.dumps(document)).encode("utf-8")
    return tuple(parse_header(text, 8 + len(text) + data, FILE).tensors)


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    assert parse({"z": entry(0, 8), "a": entry(8, 16)}, 16) == ("z", "a")


def test_a_tensor_without_bytes_is_accepted() -> None:
    assert parse({"a": entry(0, 0, shape=[0, 3]), "b": entry(0, 8)}) == ("a", "b")


def test_padding_and_metadata_are_accepted() -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}) + "   "
    header = parse_header(text.encode(), 8 + len(text) + 8, FILE)
    assert dict(header.metadata) == {"format": "pt"}
    assert header.tensors["a"].offset == 8 + len(text)


HOSTILE: dict[str, tuple[Any, str]] = {
    "not json": ("{", "the header is not JSON text"),
    "a list": ([], "the header is a JSON list, expected an object"),
    "deep nesting": ('{"a":' + "[" * 100_000, "the header is not JSON text"),
    "the same tensor twice": (
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "the header names 'a' twice: which one is meant?",
    ),
    "a field twice": (
        '{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}',
        "the header names 'dtype' twice",
    ),
    "nan": ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "contains NaN"),
    "half a surrogate pair": (
        '{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "name is not valid Unicode",
    ),
    "metadata not text": ({"__metadata__": {"a": 1}}, "__metadata__ of the header is not an obj"),
    "metadata a list": ({"__metadata__": []}, "__metadata__ of the header is not an object"),
    "entry not an object": ({"a": 3}, "holds int, expected"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, r"holds \['dtype', 'shape'\]"),
    "extra field": ({"a": entry() | {"strides": [1]}}, "'strides'"),
    "unknown dtype": ({"a": entry(dtype="F128")}, "unknown dtype 'F128', expected one of BF16"),
    "dtype not text": ({"a": entry() | {"dtype": ["F32"]}}, "unknown dtype"),
    "negative size": ({"a": entry(shape=[-2])}, r"shape is \[-2\], expected a list"),
    "fractional size": ({"a": entry() | {"shape": [2.0]}}, r"shape is \[2.0\]"),
    "bool size": ({"a": entry(0, 4) | {"shape": [True]}}, r"shape is \[True\]"),
    "shape not a list": ({"a": entry() | {"shape": 2}}, "shape is 2, expected"),
    "shape of many axes": ({"a": entry(0, 4, shape=[1] * 33)}, "at most 32 sizes"),
    "shape beyond 64 bits": ({"a": entry(shape=[2**63])}, "shape is"),
    "shape whose product is huge": ({"a": entry(shape=[2**62] * 32)}, r"takes \d+\.\.\. bits"),
    "one offset": ({"a": entry() | {"data_offsets": [0]}}, r"data_offsets is \[0\]"),
    "negative offset": ({"a": entry(-8, 0)}, r"data_offsets is \[-8, 0\]"),
    "offsets reversed": ({"a": entry(8, 0)}, r"data_offsets is \[8, 0\], expected"),
    "size contradicts shape": (
        {"a": entry(shape=[3])},
        r"F32 of shape \[3\] takes 96 bits, but data_offsets give it 64",
    ),
    "part of a byte": ({"a": entry(0, 1, dtype="F4", shape=[1])}, "takes 4 bits, but"),
    "gap at the start": ({"a": entry(4, 12)}, "leaves a gap: it begins at byte"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps the tensor before it"),
    "the same bytes twice": ({"a": entry(0, 8), "b": entry(0, 8)}, "overlaps the tensor before"),
    "more than the file": ({"a": entry(0, 16, shape=[4])}, "the file has .* bytes, expected"),
    "less than the file": ({"a": entry(0, 4, shape=[1])}, "the file has .* bytes, expected"),
    "no tensors but bytes": ({}, "the file has .* bytes, expected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(name: str) -> None:
    document, message = HOSTILE[name]
    with pytest.raises(AdapterError, match=message) as caught:
        parse(document)
    assert caught.value.where.file == FILE


def test_a_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(AdapterError, match="not JSON text"):
        parse_header(b'{"\xff": 1}', 100, FILE)


def test_an_absurd_length_is_refused_before_anything_is_read() -> None:
    with pytest.raises(AdapterError, match="claims 18446744073709551615 bytes, expected at most"):
        header_length(b"\xff" * 8, 2**40, FILE)
    with pytest.raises(AdapterError, match="got 100 bytes, expected at least 108"):
        header_length((100).to_bytes(8, "little"), 100, FILE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__", "F32"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(document=JSON, data=st.integers(0, 64))
def test_any_json_is_accepted_or_an_adapter_error(document: Any, data: int) -> None:
    with contextlib.suppress(AdapterError):
        parse(document, data)
