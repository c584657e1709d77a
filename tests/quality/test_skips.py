"""No test of the ordinary run is skipped, but where the system lacks what it is about.

Skipped tests look like passed ones. A package that is missing is a reason in `tests/heavy` alone:
there, tests are left out of the ordinary run by their mark, before any of them can ask for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quality.paths import ROOT, run_python

HEAVY = ROOT / "tests" / "heavy"

# What Linux has, in a git checkout; the reason that is given -> why a test may ask for it.
SYSTEM = {
    "no pipes in this file system": "Windows has no os.mkfifo",
    "signals of POSIX": "Windows has other signals",
    "needs a pseudo terminal": "Windows has none",
    "no symbolic links here": "Windows asks for a privilege",
    "the child is a shell script": "Windows has no sh",
    "not a git checkout": "an unpacked source distribution",
    "no device that is always full": "/dev/full is Linux's",
    "no device without an end": "Windows has no /dev/zero",
    "files of POSIX": "Windows has other rights, and no names of bytes",
    "children are forked": "Windows has no fork",
    "the file system has no files of such a size": "some have no files of holes",
    "only root mounts file systems": "a disk that is really full, in slow tests",
    "an older ONNX Runtime": "Python 3.10 has none that takes the newest graphs",
    "no npm": "validators that are no Python packages, in slow tests",
    "the package is of Linux": "a program that is packed for each system",
}


def skips(source: str) -> Iterator[tuple[int, str]]:
    """(line, reason) of every way to skip; the reason of importorskip is the module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name not in ("skip", "skipif", "importorskip", "xfail"):
            continue
        given = [*(k.value for k in node.keywords if k.arg == "reason"), *node.args]
        texts = [n.value for n in given if isinstance(n, ast.Constant)]
        yield node.lineno, str(texts[0]) if texts else ""


def test_tests_are_skipped_for_the_system_alone() -> None:
    files = [f for f in (ROOT / "tests").rglob("*.py") if HEAVY not in f.parents]
    found = [
        f"{file.relative_to(ROOT).as_posix()}:{line}: {reason!r}"
        for file in files
        for line, reason in skips(file.read_text(encoding="utf-8"))
        if reason not in SYSTEM
    ]
    assert not found, "moves to tests/heavy, or its reason is one of SYSTEM:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ('@pytest.mark.skipif(os.name != "posix", reason="r")\ndef test() -> None: ...', ["r"]),
        ('def test() -> None:\n    pytest.skip("r")', ["r"]),
        ('torch = pytest.importorskip("torch")', ["torch"]),
        ("@pytest.mark.skip()\ndef test() -> None: ...", [""]),
        ("list.skipped()", []),
    ],
)
def test_skips_are_recognised(source: str, reasons: list[str]) -> None:
    assert [reason for _, reason in skips(source)] == reasons


def test_heavy_tests_are_left_out_and_not_skipped() -> None:
    done = run_python("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(HEAVY))
    assert done.returncode == 5, done.stdout  # pytest's code for "nothing to run"
    assert "SKIPPED" not in done.stdout
    assert "no tests collected" in done.stdout


@pytest.mark.parametrize("file", sorted(HEAVY.glob("test_*.py")), ids=lambda f: f.name)
def test_a_heavy_file_is_marked_as_a_whole(file: Path) -> None:
    marks = [
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    assert len(marks) == 1
    assert "pytest.mark.heavy" in ast.unparse(marks[0].value)
