"""Outputs in places that others use as well: locked, read-only, removed or taken meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.names import MAX_NAME_BYTES
from lora_quant.config.options import BuildOptions
from lora_quant.config.whole_files import write_file
from lora_quant.errors import PackError
from lora_quant.targets.files.output_transaction import OutputTransaction
from lora_quant.targets.files.pack_folder import PackFolder, neighbour_stem
from tests.command_line import PROGRAM, environment
from tests.robustness.children import drop_rights, in_child
from tests.sample import copy_sample, keep_use_cases, make_float, tree

FORCE = BuildOptions(force=True)
ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="files of POSIX")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def test_a_second_build_into_the_same_folder_is_refused(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with OutputTransaction(out, force=False) as folder:
        folder.write_text("a.txt", "role", "mine")
        with pytest.raises(PackError) as caught:
            build(config, out)
        assert caught.value.message == "another process is writing this folder right now"
        assert caught.value.hint == "wait until it is done, or choose another output folder"
        assert caught.value.where.file == out
        build(config, tmp_path / "out.2")
        folder.write_manifest("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.2", "sample"}


def test_two_processes_at_once(config: Path, tmp_path: Path) -> None:
    """Whoever is first writes the whole pack; the other one comes after it, or says why not."""
    command = [*PROGRAM, "build", str(config), "-o", str(tmp_path / "out"), "--force"]
    running = [
        subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(one.communicate()[1], one.returncode) for one in running]
    assert 0 in {code for _, code in ends}
    for said, code in ends:
        assert code == 0 or "another process is writing this folder right now" in said
    build(config, tmp_path / "again")
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    assert hidden(tmp_path) == []


def test_what_a_killed_build_left_goes_with_the_next(config: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".out.0123abcd.part"
    (staging / "qairt").mkdir(parents=True)
    (staging / "qairt" / "half").write_text("half", encoding="utf-8")
    waiting = config.parent / "model" / ".model.out.onnx.out.0123abcd.part"
    waiting.write_text("half", encoding="utf-8")
    lines = [{"tag": "0123abcd"}, {"beside": "sample/model/model.out.onnx"}]
    journal = "".join(json.dumps(line) + "\n" for line in lines) + '{"publishing": {"": ['
    (tmp_path / ".out.lora-quant").write_text(journal, encoding="utf-8")
    build(config, tmp_path / "out")
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"tag": "../../../mine"}',
        '{"tag": 5}',
        '{"tag": "0123abcd"}\n{"beside": "mine/letter.txt"}',
        '{"tag": "0123abcd"}\n{"beside": "\\u0000"}',
        '{"tag": "0123abcd"}\n{"publishing": {"": [1, 2], "mine/letter.txt": null}}',
        '{"tag": "0123abcd"}\n{"publishing": {"": [1, 2], "mine/letter.txt": [1, 2]}}',
        '{"tag": "0123abcd"}\n{"publishing": {"": null, "a": "b"}}',
        '{"tag": "0123abcd"}\n{"publishing": []}',
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_a_journal_of_somebody_else_removes_nothing(
    line: str, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine", encoding="utf-8")
    (tmp_path / ".out.lora-quant").write_text(line + "\n", encoding="utf-8")
    build(config, tmp_path / "out")
    assert tree(tmp_path / "mine") == {"letter.txt": b"mine"}
    assert hidden(tmp_path) == []


@ON_POSIX
def test_a_journal_that_is_a_link_is_not_followed(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / ".out.lora-quant").symlink_to(tmp_path / "mine")
    with pytest.raises(PackError, match="cannot write"):
        build(config, tmp_path / "out")
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


@ON_POSIX
def test_a_read_only_folder(config: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    report = tmp_path / "report"
    report.touch()
    report.chmod(0o666)

    def refused() -> None:
        drop_rights()
        with pytest.raises(PackError, match="cannot write: Permission denied"):
            build(config, place / "out")
        with pytest.raises(PackError, match="cannot write: Permission denied"):
            write_file(place / "file", "text", force=False)

    open_up(tmp_path)
    assert in_child(refused, report) == ""
    assert list(place.iterdir()) == []


@ON_POSIX
def test_write_protected_outputs_are_not_replaced(config: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    build(config, place / "out")
    (place / "file").write_text("old", encoding="utf-8")
    report = tmp_path / "report"
    report.touch()
    open_up(tmp_path)
    (place / "out" / "qairt" / "tone").chmod(0o555)
    (place / "file").chmod(0o444)
    before = tree(place)

    def refused() -> None:
        drop_rights()
        with pytest.raises(PackError, match="the output folder is write-protected") as caught:
            build(config, place / "out", FORCE)
        assert caught.value.where.file == place / "out" / "qairt" / "tone"
        with pytest.raises(PackError, match="the output file is write-protected"):
            write_file(place / "file", "new", force=True)

    assert in_child(refused, report) == ""
    assert tree(place) == before
    assert hidden(place) == []


def open_up(folder: Path) -> None:
    """Let everybody write into a folder, and reach it."""
    for parent in [*folder.parents][:3]:
        if os.access(parent, os.W_OK) and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)
    for path in [folder, *folder.rglob("*")]:
        if path.name != "place" or path.stat().st_mode & 0o200:
            path.chmod(0o777 if path.is_dir() else 0o666)


def test_a_staging_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    def removed() -> None:
        with OutputTransaction(tmp_path / "place" / "out", force=False) as folder:
            folder.write_text("qairt/a.txt", "role", "a")
            shutil.rmtree(tmp_path / "place")
            folder.write_text("qairt/b.txt", "role", "b")

    with pytest.raises(PackError, match="cannot write: No such file or directory"):
        removed()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_before_it_is_published(tmp_path: Path) -> None:
    def removed() -> None:
        with OutputTransaction(tmp_path / "place" / "out", force=False) as folder:
            folder.write_manifest("{}")
            shutil.rmtree(tmp_path / "place")

    with pytest.raises(PackError, match="cannot write: No such file or directory"):
        removed()
    assert list(tmp_path.iterdir()) == []


@ON_POSIX
@pytest.mark.parametrize("length", [235, 240, 243, 255, 300])
def test_an_output_name_that_is_almost_too_long(length: int, tmp_path: Path) -> None:
    """Hidden names are longer than the output's: nothing of theirs is left if one cannot be had."""

    def written() -> None:
        with OutputTransaction(tmp_path / ("n" * length), force=False) as folder:
            folder.write_manifest("{}")

    if length + len(".nnnn.0123abcd.part") - len("nnnn") > MAX_NAME_BYTES:
        with pytest.raises(PackError, match="cannot write: File name too long") as caught:
            written()
        assert caught.value.hint == "choose a shorter name for the output folder"
        assert list(tmp_path.iterdir()) == []
    else:
        written()
        assert [path.name for path in tmp_path.iterdir()] == ["n" * length]


@ON_POSIX
@pytest.mark.parametrize("length", [118, 225, 240])
def test_the_name_of_a_neighbour_that_is_too_long(length: int, tmp_path: Path) -> None:
    place, output = tmp_path / "model", tmp_path / ("n" * length)
    place.mkdir()

    def written() -> None:
        with OutputTransaction(output, force=False) as folder:
            final = place / f"{neighbour_stem(Path('model.onnx'), output, 'qairt')}.onnx"
            with folder.create_neighbour(final, "graph") as writer:
                writer.write(b"graph")

    with pytest.raises(PackError, match="cannot write: File name too long"):
        written()
    assert list(place.iterdir()) == []
    assert list(tmp_path.iterdir()) == [place]


@ON_POSIX
def test_permissions_follow_the_folder_around_and_what_is_replaced(tmp_path: Path) -> None:
    place, out = tmp_path / "place", tmp_path / "place" / "out"
    place.mkdir()
    place.chmod(0o2775)

    def write() -> int:
        with OutputTransaction(out, force=True, check=lambda *_: {}) as folder:
            assert folder.root.stat().st_mode & 0o077 == 0
            folder.write_manifest("{}")
        return out.stat().st_mode & 0o7777

    before = os.umask(0o077)
    try:
        assert write() == 0o2700
        out.chmod(0o2750)
        assert write() == 0o2750
    finally:
        os.umask(before)


@pytest.mark.parametrize("what", ["file", "link", "folder"])
def test_a_name_that_is_taken_meanwhile(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def taken() -> None:
        with OutputTransaction(out, force=False) as folder:
            folder.write_manifest("{}")
            take(what, out)

    with pytest.raises(PackError):
        taken()
    assert os.path.lexists(out)
    assert hidden(tmp_path) == []


def take(what: str, out: Path) -> None:
    if what == "file":
        out.write_text("theirs", encoding="utf-8")
    elif what == "link":
        out.symlink_to(out.parent / "none")
    else:
        out.mkdir()
        (out / "theirs").touch()


def test_a_neighbour_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "model" / "model.out.onnx"
    final.parent.mkdir()

    def taken(folder: PackFolder) -> None:
        with folder.create_neighbour(final, "graph") as writer:
            writer.write(b"ours")
        folder.write_manifest("{}")
        final.write_bytes(b"theirs")

    def race() -> None:
        with OutputTransaction(tmp_path / "out", force=False) as folder:
            taken(folder)

    with pytest.raises(PackError, match="cannot write: File exists"):
        race()
    assert tree(tmp_path) == {"model/model.out.onnx": b"theirs"}
