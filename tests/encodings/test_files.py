import io
import json
from pathlib import Path
from typing import Any

import pytest

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import (
    VERSIONS,
    encodings_text,
    parse_encodings,
    read_encodings,
    write_encodings,
)
from lora_quant.errors import ConfigError, EncodingsError, InputMissingError

ENTRY = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": True,
         "offset": [-128.0], "scale": [0.5]}  # fmt: skip
GRID = Encoding.per_tensor(0.5, bits=8, symmetric=True)


def sections(version: Any = ..., empty: Any = None) -> str:
    empty = [] if empty is None else empty
    document = {"activation_encodings": empty, "param_encodings": empty}
    return json.dumps(document if version is ... else {**document, "version": version})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (sections("0.4.0", {}), "0.4.0"),
        (sections("0.5.0", {}), "0.5.0"),
        (sections("0.6.1", {}), "0.6.1"),
        (sections("1.0.0"), "1.0.0"),
        ('{"encodings": [], "version": "2.0.0"}', "2.0.0"),
        ('{"encodings": [], "version": "2.1.0"}', "2.1.0"),
        (sections(empty={}), "0.4.0"),
        (json.dumps({"q.lora_A.weight": ENTRY}), None),
        (json.dumps({"version": ENTRY}), None),
        ("{}", None),
    ],
)
def test_the_dialect_is_told_by_the_version(text: str, version: str | None) -> None:
    assert parse_encodings(text).version == version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (sections("3.0.0"), "encodings version '3.0.0' is not known"),
        (sections(""), "encodings version '' is not known"),
        (sections(None), "encodings version None is not known"),
        (sections(1.0), "encodings version 1.0 is not known"),
        (sections(), "the file has no version"),
        ("[]", "expected an object, got a list of 0"),
        ("7", "expected an object, got 7"),
        ('{"q": 1}', "expected an object, got 1"),
    ],
)
def test_other_documents_are_refused_with_the_file(text: str, message: str) -> None:
    with pytest.raises(EncodingsError, match=message) as caught:
        parse_encodings(text, source=Path("some.encodings"))
    assert caught.value.where.file == Path("some.encodings")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 2}',
        b'{"scale": NaN}',
        b'{"scale": -Infinity}',
        b'{"scale": 1e999}',
        b'{"name": "\xff"}',
        b"[" * 100_000,
        b'{"a": ' * 100 + b"1" + b"}" * 100,
        b"",
        b"{",
    ],
)
def test_json_that_is_not_accepted_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.encodings"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_encodings(path)
    assert caught.value.where.file == path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="does not exist"):
        read_encodings(tmp_path / "none.encodings")


def test_an_entry_error_names_file_tensor_and_place(tmp_path: Path) -> None:
    path = tmp_path / "x.encodings"
    path.write_text(json.dumps({"q": {**ENTRY, "scale": [0]}}), encoding="utf-8")
    with pytest.raises(EncodingsError) as caught:
        read_encodings(path)
    assert str(caught.value) == (
        "scale is 0.0, expected a number > 0 that float32 can hold\n"
        f"  where: {path}, field 'q', tensor 'q'\n"
        "  hint:  a tensor of zeros still needs a valid range: max - min of at least 1e-5"
    )


EXPECTED = {
    "0.6.1": """{
 "activation_encodings": {
  "größe": [{"bitwidth": 8, "dtype": "int", "is_symmetric": "True", \
"max": 63.5, "min": -64.0, "offset": -128.0, "scale": 0.5}],
  "a": [{"bitwidth": 16, "dtype": "float"}]
 },
 "param_encodings": {},
 "producer": {"a": 2, "b": 1},
 "version": "0.6.1"
}
""",
    "1.0.0": """{
 "activation_encodings": [
  {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": true, \
"name": "größe", "offset": [-128.0], "scale": [0.5]},
  {"bw": 16, "dtype": "FLOAT", "enc_type": "PER_TENSOR", "name": "a"}
 ],
 "param_encodings": [],
 "producer": {"a": 2, "b": 1},
 "version": "1.0.0"
}
""",
}


@pytest.mark.parametrize("version", EXPECTED)
def test_the_bytes_are_pinned(tmp_path: Path, version: str) -> None:
    file = EncodingFile(
        version,
        {"größe": GRID, "a": Encoding.floating(16)},
        frozenset(),
        {"producer": {"b": 1, "a": 2}},
    )
    path = tmp_path / "x.encodings"
    write_encodings(file, path)
    assert path.read_bytes() == EXPECTED[version].encode("utf-8")
    assert read_encodings(path).same_content(file)
    stream = io.StringIO()
    write_encodings(file, stream)
    assert stream.getvalue() == EXPECTED[version]


def test_an_empty_fragment_is_an_empty_object() -> None:
    assert "".join(encodings_text(EncodingFile(None, {}))) == "{}\n"


def test_the_text_comes_in_pieces_of_one_entry() -> None:
    file = EncodingFile("1.0.0", {str(i): GRID for i in range(100)}, frozenset())
    assert max(map(len, encodings_text(file))) < 200


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.encodings"
    path.write_text("old", encoding="utf-8")
    file = EncodingFile("2.0.0", {"a": GRID, "w": Encoding.floating(16)})
    with pytest.raises(EncodingsError, match="no entry for a tensor") as caught:
        write_encodings(file, path)
    assert caught.value.where.file == path
    assert caught.value.where.tensor == "w"
    assert [p.name for p in tmp_path.iterdir()] == ["x.encodings"]
    assert path.read_text(encoding="utf-8") == "old"


def test_an_unknown_version_is_not_written() -> None:
    with pytest.raises(EncodingsError, match="'9' is not known") as caught:
        list(encodings_text(EncodingFile("9", {})))
    assert all(version in (caught.value.hint or "") for version in VERSIONS)


def test_updating_keeps_places_and_sections_and_appends_what_is_new() -> None:
    file = EncodingFile("1.0.0", {"x": GRID, "w": GRID}, frozenset({"w"}))
    other = Encoding.per_tensor(2.0, bits=8, symmetric=True)
    updated = file.updated({"v": other, "x": other, "z": GRID}, params=["v", "x", "unknown"])
    assert list(updated.encodings) == ["x", "w", "v", "z"]
    assert updated.encodings["x"] is other
    assert updated.params == frozenset({"w", "v"})
    assert updated.activation_names == ("x", "z")
    assert updated.param_names == ("w", "v")
    assert list(updated.without(["w"]).encodings) == ["x", "v", "z"]
    assert updated.without(["w"]).params == frozenset({"v"})
    assert file.same_content(file.updated({}))
    assert not file.same_content(updated)


def test_without_sections_every_name_is_an_activation_until_told() -> None:
    file = EncodingFile("2.0.0", {"w": GRID}).updated({"v": GRID}, params=["v"]).without(["w"])
    assert file.params is None
    assert file.activation_names == ("v",)
    assert file.param_names == ()
