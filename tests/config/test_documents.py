"""The one door for YAML and JSON: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_quant.config.documents import (
    dump_json,
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_json_located,
    read_yaml,
    read_yaml_located,
)
from lora_quant.errors import ConfigError, InputMissingError

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{i}: &b{i} [{', '.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]\n" for i in range(9)
)

YAML_REFUSED: dict[str, tuple[str | bytes, str, tuple[int, int | None] | None]] = {
    "duplicate key": (
        "a: 1\nb:\n  c: 2\n  c: 3\n",
        "the key 'c' appears twice in one object, first on line 3",
        (4, 3),
    ),
    "python tag": ("a: !!python/object:os.system x", "python/object:os.system' is not", (1, 4)),
    "standard tag": ("a: !!int '3'", "the YAML tag 'tag:yaml.org,2002:int' is not", (1, 4)),
    "bare tag": ("! x", "the YAML tag '!' is not accepted", (1, 1)),
    "own tag on a list": ("a: !mine [1]", "the YAML tag '!mine' is not accepted", (1, 4)),
    "alias inside its anchor": ("a: &x [*x]", "alias *x stands inside the value", (1, 8)),
    "unknown alias": ("a: *b", "the alias *b names no anchor above it", (1, 4)),
    "alias bomb": (BOMB, "the aliases repeat more than 10000 values", (5, 10)),
    "number as key": ("1: 2", "the key 1 is not text", (1, 1)),
    "list as key": ("[a]: 3", "a list or an object cannot be a key", (1, 1)),
    "several documents": ("a: 1\n---\nb: 2\n", "several YAML documents", (2, 1)),
    "nothing": ("", "the document is empty", None),
    "only a comment": ("# nothing\n", "the document is empty", None),
    "NaN": ("a: .nan", ".nan is not accepted", (1, 4)),
    "infinity": ("a: -.inf", "-.inf is not accepted", (1, 4)),
    "overflow": ("a: 1e999", "1e999 is beyond the range of a double", (1, 4)),
    "endless integer": ("a: " + "1" * 5000, "more than 64 bits", (1, 4)),
    "deep nesting": ("[" * 100_000, "nested deeper than the 64 levels", (1, 65)),
    "deep alias": (
        "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40,
        "nested deeper than the 64 levels",
        (2, 44),
    ),
    "tab": ("\t- a", "the text is not YAML", (1, 1)),
    "control character": ("a: \x00", "the text is not YAML", None),
    "not UTF-8": (b"a: \xff", "the text is not UTF-8: byte 0xff at offset 3", (1, None)),
    "lone surrogate": ("a: \ud800", "a lone surrogate at offset 3", (1, None)),
}

JSON_REFUSED: dict[str, tuple[str | bytes, str, tuple[int, int | None] | None]] = {
    "duplicate key": (
        '{"a": 1,\n "b": {"c": [1, 2], "c": 2}}',
        "the key 'c' appears twice in one object, first on line 2",
        (2, 21),
    ),
    "escaped duplicate key": ('{"a": 1, "\\u0061": 2}', "the key 'a' appears twice", (1, 10)),
    "NaN": ('{"NaN": [1, NaN]}', "NaN is not accepted", (1, 13)),
    "infinity": ("[-Infinity]", "-Infinity is not accepted", (1, 2)),
    "overflow": ('{"a": [1, 1e999]}', "NaN and infinity are not accepted", (1, 11)),
    "lone surrogate": ('{"a": "\\ud800"}', "holds a lone surrogate", (1, 2)),
    "lone surrogate in a key": ('{"\\ud800": 1}', "holds a lone surrogate", (1, 1)),
    "comma without a value": ("[1,,]", "the text is not JSON", (1, 4)),
    "more after the end": ('{"a": 1} x', "the text is not JSON: Extra data", (1, 10)),
    "bottomless": ("[" * 200_000, "nested deeper than the 64 levels", None),
    "deep": ("[" * 65 + "]" * 65, "nested deeper than the 64 levels", (1, 65)),
    "endless integer": ("1" * 5000, "a number cannot be read", None),
    "nothing": ("", "the document is empty", None),
    "not UTF-8": (b"[\xff]", "the text is not UTF-8", (1, None)),
    "UTF-16": (b"\xff\xfe[]", "the text is UTF-16, expected UTF-8", None),
}


@pytest.mark.parametrize("case", YAML_REFUSED)
def test_yaml_refuses(case: str) -> None:
    text, message, position = YAML_REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source=Path("f.yaml"))
    assert message in caught.value.message
    assert (caught.value.where.line, caught.value.where.column) == (position or (None, None))
    assert caught.value.where.file == Path("f.yaml")
    assert caught.value.hint


@pytest.mark.parametrize("case", JSON_REFUSED)
def test_json_refuses(case: str) -> None:
    text, message, position = JSON_REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parse_json(text, source=Path("f.json"))
    assert message in caught.value.message
    assert (caught.value.where.line, caught.value.where.column) == (position or (None, None))
    assert caught.value.hint


def test_yaml_scalars_follow_the_core_schema_of_1_2() -> None:
    text = """
    a: 1e-3
    b: off
    c: 1:30
    d: 010
    e: 2024-01-01
    f: 0x1F
    g: 1_000
    h: ~
    i: yes
    j: .5
    k: 0o17
    l: "1"
    m: TRUE
    n:
    o: -2.
    p: <<
    """
    assert parse_yaml(text) == {
        "a": 0.001,
        "b": "off",
        "c": "1:30",
        "d": 10,
        "e": "2024-01-01",
        "f": 31,
        "g": "1_000",
        "h": None,
        "i": "yes",
        "j": 0.5,
        "k": 15,
        "l": "1",
        "m": True,
        "n": None,
        "o": -2.0,
        "p": "<<",
    }


def test_yaml_aliases_are_copies() -> None:
    value = parse_yaml("a: &x {k: [1]}\nb: *x\nc: &s text\n? *s\n: 1\n")
    assert value == {"a": {"k": [1]}, "b": {"k": [1]}, "c": "text", "text": 1}
    value["a"]["k"].append(2)
    assert value["b"] == {"k": [1]}


def test_a_byte_order_mark_is_let_through() -> None:
    assert parse_json(b"\xef\xbb\xbf{}") == {}
    assert parse_yaml(b"\xef\xbb\xbfa: 1") == {"a": 1}


def test_positions_of_yaml_and_json_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text('{"a":[1,{"b":\n[]}],\n "c":{}, "d":{"e":[[],[1,2]]}}')
    from_json, from_yaml = read_json_located(file), read_yaml_located(file)
    assert from_json == from_yaml
    assert from_json.positions[("d", "e", 1, 1)] == (3, 26)
    assert from_json.position(("a", 1, "b", 7, "x")) == (1, 10)
    assert str(from_json.where(("c",), field="c")) == f"{file}:3:2, field 'c'"


def test_positions_of_block_yaml(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("a:\n  - x: 1\n    y: &n\n      z: 2\n  - *n\n")
    document = read_yaml_located(file)
    assert document.positions == {
        (): (1, 1),
        ("a",): (1, 1),
        ("a", 0): (2, 5),
        ("a", 0, "x"): (2, 5),
        ("a", 0, "y"): (3, 5),
        ("a", 0, "y", "z"): (4, 7),
        ("a", 1): (5, 5),
    }
    assert document.position(("a", 1, "z")) == (5, 5)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_missing_files_and_directories(read: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="the file does not exist"):
        read(tmp_path / "none")
    with pytest.raises(InputMissingError):
        read(tmp_path)
    with pytest.raises(InputMissingError, match="the file cannot be read"):
        read(Path("a\0b"))
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_size_is_bounded(read: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("[1, 2]")
    assert read(file, max_bytes=6) == [1, 2]
    with pytest.raises(ConfigError, match="larger than the 5 bytes"):
        read(file, max_bytes=5)


def test_yaml_is_written_for_readers_of_1_1_too() -> None:
    value = {"a": ["off", "1e-3", "x"], "b": 1e-05, "c": {}, "d": "é 日本", "e": "a\nb", "f": "~"}
    assert dump_yaml(value) == (
        'a:\n  - \'off\'\n  - "1e-3"\n  - x\nb: 1.0e-05\nc: {}\nd: é 日本\ne: "a\\nb"\nf: "~"\n'
    )


def test_shared_values_are_written_without_aliases() -> None:
    shared = [1]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n  - 1\na:\n  - 1\n"


def test_json_keeps_order_and_text() -> None:
    assert dump_json({"b": 1, "a": ["é"]}) == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'
    assert dump_json([1, {"a": 2.0}], indent=None) == '[1, {"a": 2.0}]\n'


@pytest.mark.parametrize("dump", [dump_json, dump_yaml])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [float("nan")]}, "NaN and infinity are not accepted"),
        ({1: 2}, "the key 1 is not text"),
        ({"a": {1, 2}}, "a value of type set has no place in a document"),
        (b"x", "a value of type bytes has no place in a document"),
        (["\ud800"], "holds a lone surrogate"),
    ],
)
def test_what_cannot_be_read_is_not_written(
    dump: Callable[[Any], str], value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dump(value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_nobody_waits_for_the_other_end_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tone.encodings")
    with pytest.raises(InputMissingError, match="got a pipe"):
        read_json(tmp_path / "tone.encodings")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no pipes in this file system")
def test_a_pipe_that_a_shell_hands_over_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"a": 1}')
    os.close(writing)
    assert read_json(Path(f"/proc/self/fd/{reading}")) == {"a": 1}
    os.close(reading)
