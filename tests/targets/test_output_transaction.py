"""The output appears whole or not at all, and nothing that is not ours is ever deleted."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from lora_quant.api import build
from lora_quant.config import renames
from lora_quant.config.options import BuildOptions
from lora_quant.errors import AdapterError, InputMissingError, LoraQuantError, PackError
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.output_transaction import OutputTransaction
from lora_quant.targets.files.pack_folder import HashingWriter, PackFolder
from lora_quant.targets.qairt.target import QairtTarget
from tests.sample import copy_sample, keep_use_cases, make_float, tree

FORCE = BuildOptions(force=True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "out"


def refused(config: Path, out: Path, options: BuildOptions | None = None) -> PackError:
    before = tree(out.parent) if out.parent.exists() else None
    with pytest.raises(PackError) as caught:
        build(config, out, options)
    assert (tree(out.parent) if out.parent.exists() else None) == before
    return caught.value


def full_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_parents_are_made(config: Path, out: Path) -> None:
    build(config, out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out.stat().st_mode & 0o777) == 0o755


def test_a_pack_is_replaced_only_by_force(config: Path, out: Path) -> None:
    build(config, out)
    error = refused(config, out)
    assert error.message == "the output folder already holds a pack"
    assert error.where.file == out
    assert error.hint == "add --force to replace it, or choose another folder"
    keep_use_cases(config, ["tone"])
    build(config, out, FORCE)
    assert not (out / "qairt" / "base").exists()
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(config: Path, out: Path) -> None:
    out.mkdir(parents=True)
    build(config, out)
    assert (out / "pack.json").is_file()


@pytest.mark.parametrize("options", [None, FORCE], ids=["plain", "force"])
def test_a_folder_that_is_no_pack_is_never_replaced(
    options: BuildOptions | None, config: Path, out: Path
) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    error = refused(config, out, options)
    assert "holds files and no pack.json: it is not a pack" in error.message
    assert error.hint == "choose another output folder, or empty this one"


@pytest.mark.parametrize("text", ['{"name": "another tool"}', "not json", '{"schema_version": 9}'])
def test_a_pack_json_of_something_else_is_no_pack(text: str, config: Path, out: Path) -> None:
    out.mkdir(parents=True)
    (out / "pack.json").write_text(text)
    (out / "thesis.txt").write_text("years of work")
    error = refused(config, out, FORCE)
    assert "the pack.json in the output folder is not that of a pack" in error.message
    assert error.where.file == out / "pack.json"


def test_files_that_no_build_wrote_are_not_deleted(config: Path, out: Path) -> None:
    build(config, out)
    (out / "qairt" / "notes.txt").write_text("what we measured")
    error = refused(config, out, FORCE)
    assert error.message == (
        "the output folder holds files that are not part of its pack: 'qairt/notes.txt'"
    )
    (out / "qairt" / "notes.txt").unlink()
    build(config, out, FORCE)


def test_inputs_inside_the_output_are_not_deleted(config: Path, out: Path) -> None:
    build(config, out)
    moved = out / "sample"
    shutil.copytree(config.parent, moved)
    refused(moved / config.name, out, FORCE)
    assert (moved / "model" / "model.data").is_file()


def test_a_file_or_a_link_is_in_the_way(config: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("file")
    assert "taken by something that is not a folder" in refused(config, out, FORCE).message
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    link = out.parent / "link"
    link.symlink_to(elsewhere)
    assert "taken by something that is not a folder" in refused(config, link, FORCE).message


def test_an_error_leaves_nothing_behind(config: Path, out: Path) -> None:
    """Not even the folders that were made for the output."""
    path = config.parent / "adapters" / "tone" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterError):
        build(config, out)
    assert not out.parent.exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk(force: bool, config: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if force:
        build(config, out)
    written = 0
    write = HashingWriter.write

    def fill_up(self: HashingWriter, data: bytes | memoryview) -> int:
        nonlocal written
        written += len(data)
        return full_disk() if written > 60_000 else write(self, data)

    monkeypatch.setattr(HashingWriter, "write", fill_up)
    error = refused(config, out, BuildOptions(force=force))
    assert error.message == "cannot write: No space left on device"
    assert error.hint == "check permissions and free space of the output folder"
    assert isinstance(error.__cause__, OSError)


def test_the_disk_is_full_when_the_manifest_is_written(
    config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest = PackFolder.write_manifest

    def fail(self: PackFolder, text: str) -> None:
        monkeypatch.setattr(HashingWriter, "write", full_disk)
        write_manifest(self, text)

    monkeypatch.setattr(PackFolder, "write_manifest", fail)
    error = refused(config, out)
    assert error.message == "cannot write: No space left on device"
    assert error.where.file is not None
    assert error.where.file.name == "pack.json"


def test_an_input_that_vanishes_is_not_a_full_disk(
    config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InputMissingError is an OSError as well: it must not be taken for one of the output's."""
    emit = QairtTarget.emit
    adapter = config.parent / "adapters" / "tone" / "adapter_model.safetensors"

    def vanish(self: QairtTarget, compilation: Compilation, folder: PackFolder) -> object:
        adapter.unlink()
        return emit(self, compilation, folder)

    monkeypatch.setattr(QairtTarget, "emit", vanish)
    with pytest.raises(LoraQuantError) as caught:
        build(config, out)
    assert isinstance(caught.value, (InputMissingError, AdapterError))
    assert caught.value.where.file == adapter
    assert not out.parent.exists()


@pytest.mark.parametrize("interrupt", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize("which", [0, 1])
def test_an_error_while_publishing_brings_the_old_pack_back(
    which: int, interrupt: BaseException, config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rename moves the old pack away, the second the new one into its place."""
    monkeypatch.setattr(renames, "_function", lambda: None)  # as where names cannot be swapped
    build(config, out)
    before = tree(out)
    rename = Path.rename
    calls: list[Path] = []

    def fail(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == which + 1:
            raise interrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((PackError, KeyboardInterrupt)) as caught:
        build(config, out, FORCE)
    assert isinstance(caught.value, KeyboardInterrupt) == isinstance(interrupt, KeyboardInterrupt)
    assert tree(out) == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_an_output_that_appears_meanwhile_is_kept(out: Path) -> None:
    def race() -> None:
        with OutputTransaction(out, force=False) as folder:
            folder.write_manifest("{}")
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")

    with pytest.raises(PackError, match="it is not a pack"):
        race()
    assert tree(out.parent) == {"out/thesis.txt": b"years of work"}


def test_beside_base_does_not_overwrite_what_is_there(config: Path, out: Path) -> None:
    mine = config.parent / "model" / "model.out.onnx"
    mine.write_text("my own")
    error = refused(config, out, BuildOptions(beside_base=True, force=True))
    assert error.message == "a file is in the way that this build may not replace"
    assert error.hint == (
        "it may be the graph of another pack of the same name: choose another output name"
    )
    assert error.where.file == mine
    assert mine.read_text() == "my own"
    assert {p.name for p in mine.parent.iterdir()} == {"model.onnx", "model.data", mine.name}


def test_beside_base_replaces_and_removes_its_own(config: Path, out: Path) -> None:
    base = config.parent / "model"
    build(config, out, BuildOptions(beside_base=True))
    assert {p.name for p in base.iterdir()} == {
        "model.onnx", "model.data", "model.out.onnx", "model.out.zeros.data",
    }  # fmt: skip
    build(config, out, BuildOptions(beside_base=True, force=True, alpha_name="strength"))
    manifest = json.loads((out / "pack.json").read_text(encoding="utf-8"))
    assert b"strength" in (base / "model.out.onnx").read_bytes()
    assert manifest["alpha"]["tensor"] == "strength"
    build(config, out, FORCE)
    assert {p.name for p in base.iterdir()} == {"model.onnx", "model.data"}


@pytest.mark.parametrize("beside", [False, True])
def test_a_copied_pack_does_not_own_the_graph_of_its_original(
    beside: bool, config: Path, out: Path
) -> None:
    build(config, out, BuildOptions(beside_base=True))
    copy = out.with_name("out.2")
    shutil.copytree(out, copy)
    before = {**tree(out), **tree(config.parent)}
    build(config, copy, BuildOptions(beside_base=beside, force=True, alpha_name="strength"))
    after = {**tree(out), **tree(config.parent)}
    assert {name: after[name] for name in before} == before
    added = {"model/model.out.2.onnx", "model/model.out.2.zeros.data"} if beside else set()
    assert after.keys() - before.keys() == added
    shutil.rmtree(out)
    copy.rename(out)  # and the other way round
    build(config, out, FORCE)
    assert added <= tree(config.parent).keys()


def test_beside_base_leaves_nothing_after_an_error(
    config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise PackError("on purpose")

    monkeypatch.setattr(PackFolder, "write_manifest", fail)
    before = tree(config.parent)
    with pytest.raises(PackError, match="on purpose"):
        build(config, out, BuildOptions(beside_base=True))
    assert tree(config.parent) == before
    assert not out.parent.exists()


def test_output_paths_with_dots(config: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.parent.mkdir()
    monkeypatch.chdir(out.parent)
    build(config, Path("sub/../out"))
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_two_parts_may_not_write_one_file(tmp_path: Path) -> None:
    folder = PackFolder(tmp_path, tmp_path / "out")
    folder.write_text("a/b.txt", "role", "one")
    with pytest.raises(PackError, match=r"two parts of the pack want to write 'a/b\.txt'"):
        folder.write_text("a/b.txt", "role", "two")
    assert (tmp_path / "a" / "b.txt").read_text() == "one"
