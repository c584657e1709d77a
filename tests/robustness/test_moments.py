"""A command that is killed or interrupted leaves the old files or the new ones.

Each case runs in a process of its own, which forks a child for every moment; a moment that breaks
this is named by a command that repeats it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command_line import environment
from tests.robustness.command_cases import CASES
from tests.sample import ROOT

# Where the most can be lost: a pack, and one that is spread over two folders.
REPLACING_PACKS = ("build-force", "build-beside-force")


def broken(case: str, moments: int, ended_by: str, seed: int) -> str:
    """What the moments that broke a promise say; nothing if there are none."""
    arguments = (case, "--moments", str(moments), "--signal", ended_by, "--seed", str(seed))
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.moments", *arguments],
        cwd=ROOT,
        env=environment(ORT_DISABLE_TELEMETRY="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
@pytest.mark.parametrize(
    ("case", "moments", "ended_by"),
    [
        ("build-force", 12, "KILL"),
        ("build-beside-force", 6, "KILL"),
        ("init", 4, "KILL"),
        ("build-beside", 4, "TERM"),
    ],
)
def test_a_random_moment(case: str, moments: int, ended_by: str) -> None:
    assert broken(case, moments, ended_by, seed=1) == ""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_many_moments_of_a_kill(case: str) -> None:
    assert broken(case, 200 if case in REPLACING_PACKS else 60, "KILL", seed=2) == ""


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", ["TERM", "INT"])
@pytest.mark.parametrize("case", CASES)
def test_many_moments_of_an_interrupt(case: str, ended_by: str) -> None:
    assert broken(case, 20, ended_by, seed=3) == ""
