"""Running a command as a whole process and reading what the kernel counted for it."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass


class CommandFailedError(Exception):
    """A command ended with an error; the text is the end of what it printed."""


@dataclass(frozen=True)
class Usage:
    """cpu: user and system seconds, all threads; wall: seconds; peak: resident MB (10**6 bytes)."""

    cpu: float
    wall: float
    peak: float


def run(command: Sequence[str]) -> Usage:
    """Run a command to its end; CommandFailedError if it does not end well.

    The peak cannot come out below that of this process, which must therefore stay small.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        text = output.decode(errors="replace").strip()
        raise CommandFailedError(f"{' '.join(command)}: exit {process.returncode}\n{text[-2000:]}")
    return Usage(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024 / 1e6)


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """`median (low-high)`."""
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        return f"{self.median:.{digits}f} ({low}-{high})"
