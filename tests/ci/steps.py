"""CI files as what runs them sees them: steps, their environment, bash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.command_line import environment
from tests.quality.paths import ROOT

CI_SAMPLES = ROOT / "samples" / "ci"
_EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")


def read_yaml(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


ACTION = read_yaml(ROOT / "action.yml")
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}


def run_step(
    name: str, folder: Path, temp: Path, inputs: Mapping[str, str], **more: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run one step of action.yml in `folder` as GitHub's runner does; the process and its outputs.

    `more` is what the environment has besides. Expressions are filled in as text, wherever the file
    has them.
    """
    assert set(inputs) <= set(ACTION["inputs"])
    values = {f"inputs.{k}": str(v["default"]) for k, v in ACTION["inputs"].items()}
    values |= {f"inputs.{k}": v for k, v in inputs.items()} | {"github.action_path": str(ROOT)}

    def filled(text: str) -> str:
        return _EXPRESSION.sub(lambda match: values[match.group(1)], text)

    step = STEPS[name]
    script, output = temp / "step.sh", temp / "output"
    script.write_text(filled(step["run"]), encoding="utf-8", newline="\n")
    output.write_text("")
    assert step["shell"] == "bash"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder,
        env=environment(
            RUNNER_TEMP=str(temp),
            GITHUB_OUTPUT=str(output),
            GITHUB_WORKSPACE=str(folder),
            **{key: filled(value) for key, value in step["env"].items()},
            **more,
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines = output.read_text(encoding="utf-8").splitlines()
    return done, dict(line.split("=", 1) for line in lines)


def run_script(
    lines: list[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the `script` of a GitLab job: its lines one after the other, up to one that fails."""
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment(CI_PROJECT_DIR=str(folder), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def put_program(folder: Path) -> None:
    """A `lora-quant` in `folder` that is this checkout's."""
    folder.mkdir(parents=True)
    program = folder / "lora-quant"
    start = "from lora_quant.cli.main import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    program.chmod(0o755)


def path_with_python(folder: Path) -> str:
    """A PATH on which `python` is the one that runs the tests, as in CI; a link in `folder`."""
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
