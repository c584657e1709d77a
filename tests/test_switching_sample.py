"""The switching sample runs as its docstring says, and tells what is wrong with a pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from tests.quality.paths import run_python
from tests.sample import CONFIG, ROOT

SCRIPT = str(ROOT / "samples" / "switching.py")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("switching") / "pack"
    build(CONFIG, output, BuildOptions(targets=("onnxruntime",)))
    return output


def test_the_sample_switches_use_cases_and_strengths(pack: Path) -> None:
    done = run_python(SCRIPT, str(pack))
    assert done.returncode == 0, done.stdout
    moved = {
        line.partition(" by up to ")[0].split(" moves")[0].rstrip(" :"): line.split()[-1]
        for line in done.stdout.splitlines()
    }
    assert list(moved) == [
        *("base", "tone", "legal", "style", "both"),
        *("both, tone 0.0", "both, tone 0.5", "both, tone 1.0"),
    ]
    assert moved["base"] == "0.000"
    assert moved["both, tone 1.0"] == moved["both"]
    assert len({moved[name] for name in ("both, tone 0.0", "both, tone 0.5", "both")}) == 3


def test_the_sample_names_a_folder_that_is_no_pack(tmp_path: Path) -> None:
    empty = tmp_path / "none"
    done = run_python(SCRIPT, str(empty))
    assert done.returncode == 1
    assert str(empty) in done.stdout
    assert "Traceback" not in done.stdout


def test_the_sample_says_how_it_is_called() -> None:
    done = run_python(SCRIPT)
    assert (done.returncode, done.stdout) == (1, "usage: python samples/switching.py OUT\n")
