"""The step that validates, run as GitHub's runner runs it: bash, inputs in the environment.

`test_as_a_user.py` runs the step that installs as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ci.steps import put_program, run_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the child is a shell script"),
]

FINE = '{"name": "a", "rank": 8, "alpha": 1, "target_modules": ["q"]}\n'
BROKEN = '{"name": "a", "rank": "8", "alpha": 1, "target_modules": ["q"]}\n'
Step = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, str]]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner temp")
    put_program(folder / "lora-quant" / "bin")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A file that is fine and one that is broken, both in folders with spaces."""
    for name, text in (("is fine", FINE), ("is broken, it's $HOME", BROKEN)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.json").write_text(text)
    return tmp_path


@pytest.fixture
def validate(program: Path, checkout: Path) -> Step:
    return lambda **inputs: run_step(
        "Validate", checkout, program, {k.replace("_", "-"): v for k, v in inputs.items()}
    )


def test_files_that_are_fine(validate: Step) -> None:
    done, outputs = validate(paths="is fine/adapter.json\n", select="schema")
    assert (done.returncode, done.stdout) == (0, ""), done
    assert outputs == {"ok": "true", "exit-code": "0"}


def test_a_broken_file_is_annotated_and_reported(validate: Step, checkout: Path) -> None:
    done, outputs = validate(
        paths="is fine/adapter.json\r\n\nis broken, it's $HOME",
        select="schema,cross-file",
        sarif_file="a report.sarif",
        junit_file="a report.xml",
    )
    assert done.returncode == 1, done
    assert outputs == {"ok": "false", "exit-code": "1", "sarif-file": "a report.sarif"}
    (line,) = done.stdout.splitlines()
    command, _, message = line.removeprefix("::").partition("::")
    assert command == (
        "error file=is broken%2C it's $HOME/adapter.json,line=1,col=15,title=schema/adapter-params"
    )
    assert "rank" in message
    sarif = json.loads((checkout / "a report.sarif").read_text(encoding="utf-8"))
    assert len(sarif["runs"][0]["results"]) == 1
    assert "adapter.json" in (checkout / "a report.xml").read_text(encoding="utf-8")


def test_select_ignore_and_format_are_handed_on(validate: Step) -> None:
    done, _ = validate(paths=".", ignore="schema/adapter-params", format="json", select="schema")
    assert json.loads(done.stdout)["ok"] is True, done.stdout
    done, outputs = validate(paths=".", select="no-such-area")
    assert (done.returncode, outputs["exit-code"]) == (2, "2")


def test_no_input_runs_as_a_command(validate: Step, checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    attack = "\"; touch hacked; $(touch hacked) `touch hacked` ' & touch hacked #"
    names = ("paths", "select", "ignore", "fail_on", "base", "format", "sarif_file", "junit_file")
    done, outputs = validate(**dict.fromkeys(names, attack))
    assert (done.returncode, outputs) == (2, {"ok": "false", "exit-code": "2"})
    done, outputs = validate(paths=attack, sarif_file=attack)
    assert (done.returncode, outputs["ok"]) == (1, "false")
    assert set(checkout.rglob("*")) - set(before) == {checkout / attack}


def test_a_path_is_no_option_and_a_name_sets_no_output(validate: Step, checkout: Path) -> None:
    _, outputs = validate(paths="--report=json=written.json", sarif_file="x\nok=forged")
    assert outputs == {"ok": "false", "exit-code": "1"}
    assert not (checkout / "written.json").exists()


def test_no_path_is_wrong_usage(validate: Step) -> None:
    done, outputs = validate(paths="\n")
    assert (done.returncode, outputs) == (2, {})
    assert done.stdout.startswith("::error title=lora-quant::the input paths is empty")
