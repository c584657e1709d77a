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
        ("build-force", 30, "KILL"),
        ("build-beside-force", 10, "KILL"),
        ("lower-force", 6, "KILL"),
        ("init", 6, "KILL"),
        ("run-force", 4, "KILL"),
        ("build-beside", 4, "TERM"),
        ("map-force", 6, "INT"),
    ],
)
def test_a_random_moment(case: str, moments: int, ended_by: str) -> None:
    assert broken(case, moments, ended_by, seed=1) == ""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_200_moments_of_a_kill(case: str) -> None:
    assert broken(case, 200, "KILL", seed=2) == ""


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", ["TERM", "INT"])
@pytest.mark.parametrize("case", CASES)
def test_60_moments_of_an_interrupt(case: str, ended_by: str) -> None:
    assert broken(case, 60, ended_by, seed=3) == ""
