"""Out of disk at any write: a PackError, the old output as it was, and nothing left."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.errors import PackError
from tests.robustness.children import in_child
from tests.sample import copy_sample, keep_use_cases, make_float, tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
BESIDE = BuildOptions(force=True, beside_base=True, alpha_name="strength")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])
    build(config, tmp_path / "out", BuildOptions(beside_base=True))
    return config


class Full:
    """Lets the n-th call of what puts something on the disk fail, and all behind it."""

    def __init__(self, number: int) -> None:
        self.left = number

    def failing(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **options)

        return call

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lora_quant.targets.files.pack_folder import HashingWriter

        monkeypatch.setattr(HashingWriter, "write", self.failing(HashingWriter.write))
        for name in ("fsync", "write", "mkdir"):
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_every_write_may_be_the_one_that_fails(
    step: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    full = Full(10**6)
    with monkeypatch.context() as patch:
        full.watch(patch)
        build(config, tmp_path / "out", BESIDE)
    writes = 10**6 - full.left
    build(config, tmp_path / "out", BuildOptions(force=True, beside_base=True))
    assert tree(tmp_path) == before
    # Each kind of write many times over; the last ones are where names change. The very last one
    # has the new names on the disk: by then, there is nothing to refuse.
    for number in {*range(0, writes - 1, step), *range(writes - 5, writes - 1)}:
        with monkeypatch.context() as patch:
            Full(number).watch(patch)
            with pytest.raises(PackError) as caught:
                build(config, tmp_path / "out", BESIDE)
        assert "No space left on device" in caught.value.message, number
        assert tree(tmp_path) == before, number
        assert not list(tmp_path.rglob(".*")), number


@pytest.mark.parametrize("limit", [1, 5_000, 20_000, 40_000])
def test_the_system_refuses_larger_files(limit: int, config: Path, tmp_path: Path) -> None:
    """A real refusal of the kernel, in the middle of a file."""
    before = tree(tmp_path)
    report = tmp_path.with_name(f"{tmp_path.name}.report")

    def refused() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(PackError):
            build(config, tmp_path / "out", BESIDE)

    said = in_child(refused, report)
    assert said == ""
    assert tree(tmp_path) == before
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB, in a folder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root mounts file systems")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_real_disk_is_full(force: bool, small_disk: Path, tmp_path: Path) -> None:
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])
    if force:
        build(config, small_disk / "out", BuildOptions(beside_base=False))
    free = shutil.disk_usage(small_disk).free
    before = tree(small_disk)
    refusals = 0
    for room in range(4096, min(free, 900_000), 24 * 4096):
        filler = small_disk / "filler"
        filler.write_bytes(bytes(free - room))
        said = ""
        try:
            build(config, small_disk / "out", BuildOptions(force=force))
        except PackError as error:
            said = error.message
        filler.unlink()
        if said:
            refusals += 1
            assert "No space left on device" in said
            assert tree(small_disk) == before
            assert not list(small_disk.rglob(".*"))
        elif not force:
            shutil.rmtree(small_disk / "out")
    assert refusals > 3
