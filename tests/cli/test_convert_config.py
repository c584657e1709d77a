"""`lora-quant convert-config`: what it writes and says; the pairing is in tests/configure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from lora_quant.cli.main import run
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.schema_files import load_schema
from tests.configure.folders import EXPORTED, copied


def convert(*arguments: str | Path) -> int:
    return run(["convert-config", *map(str, arguments)])


def test_every_decision_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    path = folder / "lora_config.yaml"
    assert convert(folder, "-o", path) == 0
    shown, error = capfd.readouterr()
    assert error == ""
    lines = shown.splitlines()
    assert "base: model/model.onnx (the only graph without branches)" in lines
    assert "adapter tone: adapter_params/tone.json (rank 4, weights in the graphs)" in lines
    assert (
        "use case tone: graph use_case_graphs/tone.onnx, 1 tone (the only adapters with its ranks "
        "and scales), encodings encodings/tone.encodings (its 161 names are in the graph), list "
        "quant_updatable/tone.txt (its 20 lines are in the graph)" in lines
    )
    assert f"wrote {path}" in lines
    assert len(read_lora_config(path).use_cases) == 5


def test_a_file_that_is_replaced_says_nothing_about_itself(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    path = folder / "lora_config.yaml"
    assert convert(folder, "-o", path) == 0
    first = path.read_bytes()
    assert convert(folder, "-o", path, "--force") == 0
    assert path.read_bytes() == first


def test_the_report_holds_decisions_and_findings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    assert convert(folder, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    Draft202012Validator(load_schema("report")).validate(report)
    assert report["details"]["decisions"][0] == {
        "subject": "base",
        "decision": "model/model.onnx (the only graph without branches)",
    }
    assert "use-case" in yaml.safe_load(report["details"]["config"])


def test_an_empty_folder_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "lora_config.yaml"
    assert convert(tmp_path / "folder", "-o", path) == 1
    shown = capfd.readouterr().out
    assert "the folder holds nothing that a configuration could be made of" in shown
    assert "nothing was written" in shown
    assert not path.exists()


def test_a_file_that_a_build_refuses_is_written_and_not_called_fine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    fixtures = Path(__file__).parents[1] / "fixtures"
    shutil.copytree(fixtures / "exports" / "adapter", folder / "adapters" / "foreign")
    shutil.copytree(
        fixtures / "exports" / "branches" / "adapter_a",
        folder / "adapters" / "other",
        dirs_exist_ok=True,
    )
    path = folder / "lora_config.yaml"
    assert convert(folder, "-o", path) == 1
    shown = capfd.readouterr().out
    assert "the file needs a hand before `lora-quant build` takes it" in shown
    assert path.exists()


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path / "nowhere") == 1
    assert "the folder does not exist" in capfd.readouterr().err
