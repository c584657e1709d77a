"""The linters and the type checker, as part of the tests."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from tests.quality.paths import ROOT, run

SCRIPTS = Path(sysconfig.get_path("scripts"))

TOOLS = {
    "ruff check": ([sys.executable, "-m", "ruff", "check", "."], "make format"),
    "ruff format": ([sys.executable, "-m", "ruff", "format", "--check", "."], "make format"),
    "mypy": ([sys.executable, "-m", "mypy"], "make lint"),
    "import-linter": ([str(SCRIPTS / "lint-imports"), "--no-cache"], "make lint"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_has_nothing_to_say(tool: str) -> None:
    command, remedy = TOOLS[tool]
    done = run(command)
    assert done.returncode == 0, (
        f"{tool} found something; see it again with `{remedy}`:\n\n{done.stdout}"
    )


def test_pre_commit_runs_the_same_tools() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for hook in ("ruff check", "ruff format", "mypy", "import-linter"):
        assert f"name: {hook}\n" in text
