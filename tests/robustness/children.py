"""Work in a forked child: with limits and rights of its own, and a traceback if it fails."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def in_child(work: Callable[[], object], report: Path) -> str:
    """Run `work` in a child and return what it said in `report`; empty if it did not fail."""
    with warnings.catch_warnings():
        # Python warns of threads, which the work has nothing to do with.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return report.read_text(encoding="utf-8") if report.exists() else "it ended early"
    try:
        signal.alarm(60)
        file = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            work()
        except BaseException:
            os.write(file, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        os._exit(0)


def drop_rights() -> None:
    """Of root, who may write anywhere; others keep what they have."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
