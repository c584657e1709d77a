"""Lists of tensors: lines as they are, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config import tensor_list
from lora_quant.errors import ConfigError


def test_lines_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "quant_updatable_tensors.txt"
    path.write_bytes("/a\n\n /é \n".encode())
    assert tensor_list.read_lines(path) == ["/a", "", " /é "]


def test_a_list_has_as_many_lines_as_validation_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_list, "MAX_LINES", 3)
    path = tmp_path / "quant_updatable_tensors.txt"
    path.write_text("a\n" * 3, encoding="utf-8")
    assert len(tensor_list.read_lines(path)) == 3
    path.write_text("a\n" * 4, encoding="utf-8")
    with pytest.raises(ConfigError, match="the list has more than 3 lines"):
        tensor_list.read_lines(path)
