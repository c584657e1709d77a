"""SIGINT, SIGTERM and SIGHUP unwind: exit code 130, nothing left behind, the old pack in place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_quant.cli.main import run
from tests.command_line import environment
from tests.sample import make_float, tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# Stops in the middle of the use cases: after the first one it tells the parent and waits.
SCRIPT = """
import sys, time
from lora_quant.targets.qairt.target import QairtTarget

write = QairtTarget._write_use_case
def stop(self, *arguments):
    write(self, *arguments)
    print("ready", flush=True)
    for _ in range(600):  # short sleeps: another thread may be the one that takes the signal
        time.sleep(0.05)
QairtTarget._write_use_case = stop

import shutil
rmtree = shutil.rmtree
def slow(path, *arguments, **more):
    if "--slow" in sys.argv:
        print("removing", flush=True)
        time.sleep(0.5)
    rmtree(path, *arguments, **more)
shutil.rmtree = slow

from lora_quant.cli.main import main
main([a for a in sys.argv[1:] if a != "--slow"])
"""


@pytest.fixture(autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """Also where the tests themselves run under nohup, which their children would inherit."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    out = str(config.parent.parent / "out")
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "build", str(config), "-o", out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        encoding="utf-8",
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("name", "replace"),
    [("SIGINT", False), ("SIGTERM", True), ("SIGHUP", False), ("SIGINT", True)],
)
def test_nothing_is_left_behind(name: str, replace: bool, sample: Path) -> None:
    folder = sample.parent.parent
    make_float(sample)
    if replace:
        assert run(["build", str(sample), "-o", str(folder / "out")]) == 0
    before = tree(folder)
    process = start(sample, "--force", "--beside-base")
    assert read_line(process) == "ready\n"
    assert tree(folder) != before, "it is in the middle of its work"
    process.send_signal(signal.Signals[name])
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "interrupted: nothing was left behind"
    assert tree(folder) == before
    assert sorted(p.name for p in folder.iterdir()) == (
        ["out", "sample"] if replace else ["sample"]
    )


def test_a_second_signal_does_not_stop_the_cleaning(sample: Path) -> None:
    make_float(sample)
    process = start(sample, "--slow")
    assert read_line(process) == "ready\n"
    process.send_signal(signal.SIGINT)
    assert read_line(process) == "removing\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "interrupted: nothing was left behind"
    assert [p.name for p in sample.parent.parent.iterdir()] == ["sample"]


def test_nohup_is_obeyed(sample: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(make_float(sample))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert read_line(process) == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_handlers_of_the_caller_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run(["--version"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_other_threads_may_run_it(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
