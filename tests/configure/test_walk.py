"""How far a folder is read."""

from __future__ import annotations

from pathlib import Path

from lora_quant.configure.found.walk import walk_folder


def test_files_come_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", ".git/x", "c/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("", encoding="utf-8")
    walked = walk_folder(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in walked.files] == ["a", "b/1", "b/2"]
    assert walked.findings == ()


def test_deep_folders_are_named_and_not_read(tmp_path: Path) -> None:
    deep = tmp_path / "1" / "2" / "3"
    deep.mkdir(parents=True)
    (deep / "file").write_text("", encoding="utf-8")
    (tmp_path / "1" / "file").write_text("", encoding="utf-8")
    walked = walk_folder(tmp_path, max_depth=2)
    assert [p.name for p in walked.files] == ["file"]
    (finding,) = walked.findings
    assert (finding.rule, finding.message) == (
        "convert/depth",
        "folders below 2 others were not read: '1/2/3'",
    )


def test_a_huge_folder_is_read_up_to_a_limit(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / str(number)).write_text("", encoding="utf-8")
    walked = walk_folder(tmp_path, max_files=5)
    assert len(walked.files) == 5
    assert [f.rule for f in walked.findings] == ["convert/limit"]
