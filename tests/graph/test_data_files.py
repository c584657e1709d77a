"""Copying and recognising data files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lora_quant.errors import InputMissingError, PackError
from lora_quant.graph.files import data_files
from lora_quant.graph.files.data_files import copy_with_sha256, sampled_sha256, sha256_of


def content(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


@pytest.mark.parametrize("size", [0, 1, 4096, 3 << 20])
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
def test_a_copy_has_the_bytes_and_the_digest(
    tmp_path: Path, size: int, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(content(size))
    assert copy_with_sha256(source, target) == hashlib.sha256(content(size)).hexdigest()
    assert target.read_bytes() == content(size)
    assert sha256_of(target) == sha256_of(source)


def test_a_copy_goes_on_where_the_kernel_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def partial(source: int, target: int, _count: int) -> int:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(18, "Invalid cross-device link")
        return os.write(target, os.read(source, 1000))

    monkeypatch.setattr(os, "copy_file_range", partial, raising=False)
    (tmp_path / "a").write_bytes(content(5000))
    copy_with_sha256(tmp_path / "a", tmp_path / "b")
    assert len(calls) == 3
    assert (tmp_path / "b").read_bytes() == content(5000)


def test_a_missing_source(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for read in (sha256_of, sampled_sha256):
        with pytest.raises(InputMissingError, match="cannot be read: No such file"):
            read(absent)
    with pytest.raises(InputMissingError, match="cannot be read: No such file"):
        copy_with_sha256(absent, tmp_path / "b")


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content(100))
    with pytest.raises(PackError, match="the weights cannot be copied: No such file") as caught:
        copy_with_sha256(tmp_path / "a", tmp_path / "nowhere" / "b")
    assert "--beside-base" in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content(100_000))
    with pytest.raises(PackError, match="cannot be copied: No space left on device"):
        copy_with_sha256(tmp_path / "a", Path("/dev/full"))


def test_a_source_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(content(5000))
    copied = data_files._copy

    def changing(*arguments: object) -> None:
        copied(*arguments)  # type: ignore[arg-type]
        with source.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(data_files, "_copy", changing)
    with pytest.raises(PackError, match="changed while they were copied: got 5000 bytes"):
        copy_with_sha256(source, tmp_path / "b")


def test_a_hashing_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(content(100))

    def failing(path: Path, _stopped: object) -> str:
        raise data_files._unreadable(path, OSError(5, "Input/output error"))

    monkeypatch.setattr(data_files, "_hash", failing)
    with pytest.raises(InputMissingError, match="cannot be read: Input/output error"):
        copy_with_sha256(tmp_path / "a", tmp_path / "b")


def test_samples_cover_small_files_and_the_ends_of_large_ones(tmp_path: Path) -> None:
    path = tmp_path / "a"
    size = data_files.SAMPLE_BLOCKS * data_files.SAMPLE_BLOCK_SIZE
    seen = set()
    for length, changed in ((100, 50), (size, size // 2), (4 * size, 0), (4 * size, 4 * size - 1)):
        data = bytearray(content(length))
        path.write_bytes(data)
        plain = sampled_sha256(path)
        data[changed] ^= 1
        path.write_bytes(data)
        assert sampled_sha256(path) != plain
        seen.add(plain)
        path.write_bytes(data[:-1])
        assert sampled_sha256(path) not in {plain, sha256_of(path)}
    assert len(seen) == 3
