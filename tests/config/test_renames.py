"""Renames that may not replace anything, on systems that cannot do both at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config import renames


@pytest.fixture(params=[True, False], ids=["of the system", "in two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the system's own call."""
    if not request.param:
        monkeypatch.setattr(renames, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_a_name_that_is_free_is_taken(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    renames.rename_new(tmp_path / "new", tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.usefixtures("way")
def test_a_name_that_something_has_is_left_alone_be_it_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError) as caught:
            renames.rename_new(tmp_path / "new", tmp_path / name)
        assert str(tmp_path / name) in (caught.value.filename, caught.value.filename2)
    assert (tmp_path / "new").read_text() == "new"
    assert (tmp_path / "file").read_text() == "old"
