"""Files that appear together, or not at all; what is in the way of one is told alike everywhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from lora_quant.config.whole_files import write_file, write_files
from lora_quant.errors import AdapterError, PackError

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
HIDDEN = ".lora-quant-0123456789abcdef.part"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(path: Path, *, force: bool = True) -> PackError:
    before = names(path.parent)
    with pytest.raises(PackError) as caught:
        write_file(path, "new", force=force)
    assert caught.value.where.file == path
    assert names(path.parent) == before
    return caught.value


def test_bytes_are_the_same_everywhere(tmp_path: Path) -> None:
    write_files({tmp_path / "a": "ä\n", tmp_path / "b": ""}, force=False)
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\n"
    assert names(tmp_path) == {"a", "b"}


def test_nothing_is_left_if_the_second_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before", encoding="utf-8")
    (tmp_path / "b").mkdir()
    with pytest.raises(PackError, match="the output file is a folder") as caught:
        write_files({tmp_path / "a": "after", tmp_path / "b": "after"}, force=True)
    assert caught.value.where.file == tmp_path / "b"
    assert (tmp_path / "a").read_text(encoding="utf-8") == "before"
    assert names(tmp_path) == {"a", "b"}


def test_nothing_is_left_of_what_its_writer_gives_up(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> NoReturn:
        file.write(b"half")
        raise AdapterError("on purpose")

    with pytest.raises(AdapterError, match="on purpose"):
        write_files({tmp_path / "a": "whole", tmp_path / "b": fail}, force=False)
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "a", "\udcff", force=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert refused(tmp_path / ("a" * 300)).message.startswith("cannot write: ")


def test_a_long_name_is_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("a" * 255), "", force=False)
    assert names(tmp_path) == {"a" * 255}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("before", encoding="utf-8")

    def full(number: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = refused(tmp_path / "a")
    assert error.message == "cannot write: No space left on device"
    assert error.hint == "check permissions and free space, or choose another file"
    assert (tmp_path / "a").read_text(encoding="utf-8") == "before"


def test_a_file_has_the_permissions_that_others_get(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "", force=False)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == (0o640 if os.name == "posix" else 0o666)


@ON_POSIX
def test_a_file_that_is_replaced_leaves_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before", encoding="utf-8")
    (tmp_path / "a").chmod(0o604)
    write_file(tmp_path / "a", "after", force=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o604


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before", encoding="utf-8")
    error = refused(tmp_path / "a", force=False)
    assert error.message == "the output file exists"
    assert error.hint == "add --force to replace it, or choose another file"
    write_file(tmp_path / "a", "after", force=True)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "after"


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="the folder of the output file does not exist"):
        write_file(tmp_path / "none" / "a", "", force=True)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent)


@ON_POSIX
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_folder, "a folder"),
        (make_pipe, "a pipe"),
        (make_socket, "a socket"),
        (make_device, "a device"),
        (make_link_to_folder, "a folder"),
    ],
)
def test_what_is_no_regular_file_is_never_replaced(
    make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    make(tmp_path / "a")
    assert refused(tmp_path / "a").message == f"the output file is {kind}, which is never replaced"


@ON_POSIX
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_replaced_and_not_what_it_points_at(dangling: bool, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "mine"
    target.parent.mkdir()
    if not dangling:
        target.write_text("mine", encoding="utf-8")
    (tmp_path / "a").symlink_to(target)
    assert refused(tmp_path / "a", force=False).message == "the output file exists"
    write_file(tmp_path / "a", "new", force=True)
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"
    assert target.exists() is not dangling
    assert dangling or target.read_text(encoding="utf-8") == "mine"


def test_a_name_that_is_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    def race(file: BinaryIO) -> None:
        file.write(b"ours")
        (tmp_path / "a").write_text("theirs", encoding="utf-8")

    with pytest.raises(PackError, match="the output file exists"):
        write_file(tmp_path / "a", race, force=False)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "theirs"
    assert names(tmp_path) == {"a"}


def test_a_file_of_ones_own_beside_it_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.partial", ".a.part", ".lora-quant-mine.part", ".lora-quant-0123456789abcdef"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    before = names(tmp_path)
    write_file(tmp_path / "a", "new", force=False)
    assert names(tmp_path) == before | {"a"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / HIDDEN).write_text("half", encoding="utf-8")
    (tmp_path / HIDDEN.replace("0", "f")).mkdir()  # never made by us
    write_file(tmp_path / "a", "new", force=False)
    assert names(tmp_path) == {"a", HIDDEN.replace("0", "f")}


def test_what_a_living_process_writes_is_not_removed(tmp_path: Path) -> None:
    def other(file: BinaryIO) -> None:
        write_file(tmp_path / "b", "other", force=False)
        file.write(b"mine")

    write_file(tmp_path / "a", other, force=False)
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert names(tmp_path) == {"a", "b"}
