"""What git tracks: nothing large, nothing that runs when it is loaded, nothing of one machine."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.quality.paths import ROOT, run

LARGEST = 3_000_000

# Written so that this file does not match its own patterns.
_MACHINE_FOLDERS = "|".join(("work", "root", "farm", "opt", r"home/\w+", r"Users/\w+"))
MACHINE_PATH = re.compile(rf"(?<![\w.$}}<)*-])/(?:{_MACHINE_FOLDERS})/")
REGISTRY = re.compile(
    "|".join(("index" + "-url", r"https?://\S*/" + r"simple\b", "files.python" + "hosted"))
)
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill"}
_PICKLE = re.compile(rb"\A\x80[\x02-\x05]")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    assert done.returncode == 0, done.stdout
    files = (ROOT / name for name in done.stdout.split("\0") if name)
    return [file for file in files if file.is_file()]


def is_pickle(name: str, content: bytes) -> bool:
    """By suffix, by the first bytes, or by a member of an archive (PyTorch's format)."""
    if Path(name).suffix.lower() in PICKLE_SUFFIXES:
        return True
    if _PICKLE.match(content):  # a safetensors header may start with the same two bytes
        return content.endswith(b".") and content[8:9] != b"{"
    if not content.startswith(b"PK\3\4"):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(Path(member).suffix in PICKLE_SUFFIXES for member in archive.namelist())


def text_lines(files: list[Path]) -> Iterator[tuple[str, str]]:
    """(place, line) of every line of text."""
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            yield f"{file.relative_to(ROOT).as_posix()}:{number}", line


def test_no_file_is_large(tracked: list[Path]) -> None:
    large = {f.relative_to(ROOT).as_posix(): f.stat().st_size for f in tracked}
    large = {name: size for name, size in large.items() if size > LARGEST}
    assert not large, f"larger than {LARGEST} bytes: make them in the tests instead"


def test_no_file_is_a_pickle(tracked: list[Path]) -> None:
    found = [f.relative_to(ROOT).as_posix() for f in tracked if is_pickle(f.name, f.read_bytes())]
    assert not found, "pickles run code when they are loaded: store safetensors, npz or JSON"


@pytest.mark.parametrize(
    ("pattern", "what"),
    [(MACHINE_PATH, "a path of one machine"), (REGISTRY, "a package registry")],
    ids=["machine paths", "registries"],
)
def test_no_file_names(pattern: re.Pattern[str], what: str, tracked: list[Path]) -> None:
    found = [
        f"{place}: {line.strip()}" for place, line in text_lines(tracked) if pattern.search(line)
    ]
    assert not found, f"{what} is named in:\n" + "\n".join(found[:20])


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("see {}work/main/x.py", True),
        ('"{}home/ann/model"', True),
        ("docs{}work/x", False),
        ("$HOME{}work/x", False),
    ],
)
def test_machine_paths_are_recognised(line: str, is_found: bool) -> None:
    assert bool(MACHINE_PATH.search(line.format("/"))) is is_found


def zip_of(member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("weights.bin", lambda: zip_of("archive/data.pkl"), True),
        ("weights.npz", lambda: zip_of("a.npy"), False),
        ("weights.pt", lambda: b"", True),
        ("x.bin", lambda: b"\x80\x04\x95.", True),
        ("x.bin", lambda: b"{}", False),
        ("x.safetensors", lambda: b"\x80\x05\0\0\0\0\0\0{}.", False),
    ],
)
def test_pickles_are_recognised(name: str, make: Callable[[], bytes], expected: bool) -> None:
    assert is_pickle(name, make()) is expected
