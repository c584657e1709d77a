"""Hints for paths that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config.missing_path import missing_hint, spelling_hint
from lora_quant.config.validation_errors import number_hint


def test_a_name_that_is_nearly_one_of_the_folder_is_suggested(tmp_path: Path) -> None:
    for name in ("tone.onnx", "legal.onnx"):
        (tmp_path / name).touch()
    assert missing_hint(tmp_path / "tome.onnx", "check it") == "did you mean 'tone.onnx'? check it"
    assert missing_hint(tmp_path / "style_7.onnx", "check it") == "check it"
    assert missing_hint(tmp_path / "no_folder" / "tone.onnx", "check it") == "check it"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("graphs\\tone.onnx", "write '/' between folders: a backslash is a part of a name here"),
        ("graphs\tone.onnx", "the path holds a control character"),
    ],
)
def test_paths_as_windows_writes_them(path: str, hint: str) -> None:
    spelling = spelling_hint(Path(path))
    assert spelling is not None
    assert spelling.startswith(hint)
    assert missing_hint(Path(path), "check it") == f"{spelling}; check it"


def test_a_path_without_a_slip_of_spelling() -> None:
    assert spelling_hint(Path("graphs/größe 2.onnx")) is None


@pytest.mark.parametrize("text", ["0.6", "1e-3", "12"])
def test_a_number_in_quotes(text: str) -> None:
    assert number_hint(text) == "remove the quotes"


@pytest.mark.parametrize("text", ["0,6", "four", ""])
def test_a_text_that_is_no_number(text: str) -> None:
    assert number_hint(text) == "write a number, decimals behind a point"
