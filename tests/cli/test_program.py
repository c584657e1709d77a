"""The program itself: help, options, start-up, progress on a terminal only, a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lora_quant import __version__
from lora_quant.cli.build_command import build_command
from lora_quant.cli.main import run
from lora_quant.config.options import BuildOptions
from tests.command_line import PROGRAM, command, environment
from tests.sample import make_float


@pytest.mark.parametrize("name", ["build", "map", "verify", "validate"])
def test_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: lora-quant {name}" in capfd.readouterr().out


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"lora-quant, version {__version__}\n"


def test_options_derive_from_the_dataclass() -> None:
    """One option per field, with its default and its help."""
    options = {p.name: p for p in build_command.params}
    for field in fields(BuildOptions):
        option = options.pop(field.name)
        assert option.default == field.default, field.name
        assert getattr(option, "help", None) == field.metadata["help"]
    assert set(options) == {"config", "output", "as_json"}
    assert [o for p in build_command.params for o in p.opts if o.startswith("--")] == [
        "--output",
        "--target",
        "--create-lora-graph",
        "--map-from",
        "--mode",
        "--alpha-name",
        "--alpha-layout",
        "--beside-base",
        "--strict-none",
        "--force",
        "--weight-bits",
        "--activation-bits",
        "--rank-multiple",
        "--fixed-conflict",
        "--encodings-version",
        "--lora-weights",
        "--dim",
        "--htp-arch",
        "--qnn-context",
        "--stacking",
        "--merge",
        "--approximate",
        "--approximate-rank",
        "--max-error",
        "--check-stages",
        "--json",
    ]


def test_piped_output_has_no_progress(sample: Path) -> None:
    done = command("build", make_float(sample), "-o", sample.parent / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    done = command("verify", sample.parent / "out")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")
def test_a_terminal_shows_progress(sample: Path) -> None:
    import pty

    master, slave = pty.openpty()
    arguments = ["build", str(make_float(sample)), "-o", str(sample.parent / "out")]
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=slave,
        env=environment(TERM="xterm"),
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    assert b"done" in shown  # the last state is always drawn
    assert b"10/10" in shown
    assert b"9/9" not in out


def test_a_reader_that_goes_away(sample: Path) -> None:
    """`lora-quant map MODEL | head -0`: no traceback, no complaint; 1 tells that output is lost."""
    process = subprocess.Popen(
        [*PROGRAM, "map", str(sample.parent / "model" / "model.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert error == b""


def test_start_up_needs_nothing_heavy() -> None:
    """`--help` loads neither NumPy nor ONNX."""
    code = (
        "import sys\n"
        "from lora_quant.cli.main import run\n"
        "run(['build', '--help'])\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
