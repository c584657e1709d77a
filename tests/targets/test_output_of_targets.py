"""Packs of several targets: replaced as a whole, and nothing left behind when one of them fails."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.manifest_seal import seal_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.errors import LoraQuantError, PackError
from lora_quant.targets.files.pack_folder import HashingWriter, PackFolder
from lora_quant.validation.pack.check import check_pack
from tests.sample import copy_sample, keep_use_cases, tree

ALL = ("onnxruntime", "qairt", "qnn")
NEW = ("onnxruntime", "qnn")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return keep_use_cases(copy_sample(tmp_path), ["base", "tone"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "a place of mine" / "Päckchen"


def options(*targets: str, beside: bool = False) -> BuildOptions:
    return BuildOptions(targets=targets, force=True, beside_base=beside)


def fail_after(
    bytes_written: int, error: BaseException
) -> Callable[[HashingWriter, bytes | memoryview], int]:
    write = HashingWriter.write
    written = 0

    def fill_up(self: HashingWriter, data: bytes | memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > bytes_written:
            raise error
        return write(self, data)

    return fill_up


@pytest.fixture
def written(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """How many bytes a target writes, besides the data that the kernel copies."""

    def count(target: str) -> int:
        total = 0
        write = HashingWriter.write

        def add(self: HashingWriter, data: bytes | memoryview) -> int:
            nonlocal total
            total += len(data)
            return write(self, data)

        with monkeypatch.context() as patch:
            patch.setattr(HashingWriter, "write", add)
            build(config, tmp_path / "counted", options(target))
        shutil.rmtree(tmp_path / "counted")
        return total

    return count


@pytest.mark.parametrize("old", [False, True], ids=["nothing before", "a pack before"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("target", NEW)
def test_a_target_that_fails_leaves_what_was_there(
    target: str,
    error: BaseException,
    old: bool,
    config: Path,
    out: Path,
    written: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At several places: in the graph, in an adapter file, in the manifest."""
    size = written(target)
    if old:
        build(config, out, options("qairt"))
    before = tree(config.parents[1])
    for share in (0.0, 0.3, 0.6, 0.8):
        with monkeypatch.context() as patch:
            patch.setattr(HashingWriter, "write", fail_after(int(size * share), error))
            with pytest.raises((PackError, KeyboardInterrupt)) as caught:
                build(config, out, options(target))
        assert isinstance(caught.value, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)
        assert tree(config.parents[1]) == before
        assert out.parent.exists() == old
        if old:
            assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_the_second_target_takes_the_first_with_it(
    config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = PackFolder.create

    def fail(self: PackFolder, path: str, role: str, use_case: str | None = None) -> object:
        if path == "qnn/tone.onnx_adapter":
            raise PackError("on purpose")
        return create(self, path, role, use_case)

    monkeypatch.setattr(PackFolder, "create", fail)
    with pytest.raises(PackError, match="on purpose"):
        build(config, out, options(*ALL))
    assert not out.parent.exists()


def test_a_damaged_adapter_file_is_not_published(
    config: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = HashingWriter.write

    def damage(self: HashingWriter, data: bytes | memoryview) -> int:
        return write(self, bytes(data).replace(b"TORT", b"TORD"))

    monkeypatch.setattr(HashingWriter, "write", damage)
    with pytest.raises(LoraQuantError, match=r"pack/adapter-format.*onnxruntime/") as caught:
        build(config, out, options("onnxruntime"))
    assert caught.value.code == "LQ510"
    assert not out.parent.exists()


@pytest.mark.parametrize("beside", [False, True])
def test_a_pack_of_other_targets_is_replaced_as_a_whole(
    beside: bool, config: Path, out: Path
) -> None:
    base = config.parent / "model"
    own = tree(base)
    build(config, out, options("onnxruntime", "qairt", beside=beside))
    assert check_pack(out) == ()
    names = set(tree(base)) - set(own)
    assert any("onnxruntime" in name for name in names) == beside
    build(config, out, options("qairt", beside=beside))
    assert check_pack(out) == ()
    assert not (out / "onnxruntime").exists()
    assert not any("onnxruntime" in name for name in tree(base))
    build(config, out, options("qnn"))
    assert check_pack(out) == ()
    assert tree(base) == own
    assert {p.name for p in out.iterdir()} == {"pack.json", "qnn"}
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_files_of_every_role_are_replaced(config: Path, out: Path) -> None:
    """A pack with a compiled graph and companions is a pack like others."""
    build(config, out, options("qnn"))
    path = out / "pack.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for role, name in (
        ("context", "model_ctx.onnx"),
        ("context-data", "model_ctx_qnn.bin"),
        ("companion", "genai_config.json"),
    ):
        (out / "qnn" / name).write_bytes(b"{}")
        record = {"role": role, "path": f"qnn/{name}", "size": 2, "sha256": "0" * 64}
        document["targets"][0]["files"].append(record)
    path.write_text(seal_manifest(json.dumps(document)), encoding="utf-8")
    build(config, out, options("onnxruntime"))
    assert check_pack(out) == ()
    assert not (out / "qnn").exists()


def test_a_file_that_the_manifest_does_not_list_keeps_the_pack(config: Path, out: Path) -> None:
    build(config, out, options("onnxruntime"))
    (out / "onnxruntime" / "mine.onnx_adapter").write_bytes(b"my own")
    before = tree(out)
    with pytest.raises(PackError, match="not part of its pack"):
        build(config, out, options("onnxruntime"))
    assert tree(out) == before


def test_the_same_inputs_give_the_same_bytes(config: Path, out: Path) -> None:
    build(config, out, options(*NEW))
    before = tree(out)
    build(config, out, options(*NEW))
    assert tree(out) == before
