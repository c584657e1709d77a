"""Text files that appear together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_quant.config.whole_files import replace_texts


def test_bytes_are_the_same_everywhere(tmp_path: Path) -> None:
    replace_texts({tmp_path / "a": "ä\n", tmp_path / "b": ""})
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_nothing_is_left_if_the_second_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before", encoding="utf-8")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        replace_texts({tmp_path / "a": "after", tmp_path / "b": "after"})
    assert caught.value.filename == str(tmp_path / "b")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_nothing_is_left_of_text_that_has_no_utf8_form(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        replace_texts({tmp_path / "a": "\udcff"})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011  (every system has its own words)
        replace_texts({tmp_path / ("a" * 300): ""})
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_permissions_that_others_get(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_texts({tmp_path / "a": ""})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == (0o640 if os.name == "posix" else 0o666)


def test_a_file_of_ones_own_beside_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("mine", encoding="utf-8")
    replace_texts({tmp_path / "a": "new"})
    assert (tmp_path / "a.partial").read_text(encoding="utf-8") == "mine"
