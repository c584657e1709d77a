"""The command line, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.sample import ROOT

PROGRAM = (sys.executable, "-c", "from lora_quant.cli.main import main; main()")


def environment(**more: str) -> dict[str, str]:
    """The environment of a subprocess: plain text, whatever the terminal of this one."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    return {**kept, "NO_COLOR": "1", **more}


def command(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `lora-quant` in a process of its own, both outputs captured."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        env=environment() if env is None else dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
