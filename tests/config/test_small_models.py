"""Run config, attach point map, adapter JSON, report and build options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from lora_quant.config.adapter_params import read_adapter_params
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.finding_records import FindingRecord
from lora_quant.config.options import BuildOptions
from lora_quant.config.report import Report
from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig, read_run_config
from lora_quant.errors import ConfigError
from lora_quant.findings import Finding, Severity


def test_run_config_defaults_to_the_compiled_strengths() -> None:
    assert UseCaseRunConfig(name="both").adapters == []


def test_run_config_names_an_adapter_once() -> None:
    loud = AdapterRunConfig(name="tone", alpha=2)
    with pytest.raises(ConfigError, match=r"adapters\[1\].name: the adapter 'tone' is named twice"):
        UseCaseRunConfig(name="both", adapters=[loud, loud])


@pytest.mark.parametrize(
    "text",
    [
        "name: both\nadapters: [{name: a, alpha: 1}]",
        '{"name":"both","adapters":[{"name":"a","alpha":1}]}',
    ],
)
def test_run_config_is_read_from_yaml_and_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(text)
    assert read_run_config(tmp_path / "run") == UseCaseRunConfig(
        name="both", adapters=[AdapterRunConfig(name="a", alpha=1.0)]
    )


def test_attach_map(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text('{"l.q": ["/l/q/Transpose", "/l/q/Conv"], "act": []}')
    assert read_attach_map(file) == {"l.q": ["/l/q/Transpose", "/l/q/Conv"], "act": []}
    file.write_text('{"a": [],\n "l.q": "/l/q/Conv"}')
    with pytest.raises(ConfigError) as caught:
        read_attach_map(file)
    assert str(caught.value) == (
        "l.q: expected a list, got the text '/l/q/Conv'\n"
        f"  where: {file}:2:2, field 'l.q'\n"
        "  hint:  put it in [ ], or write one '- item' a line"
    )


def test_adapter_params(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"name": "a", "rank": 8, "alpha": 16, "target_modules": ["q"]}')
    assert read_adapter_params(file).rank == 8
    file.write_text('{"name": "a", "rank": 8.5, "alpha": 16, "target_modules": ["q"]}')
    with pytest.raises(ConfigError, match=r"rank: expected a whole number, got the number 8\.5"):
        read_adapter_params(file)


def test_report_has_stable_bytes() -> None:
    note = FindingRecord.of(Finding("r/x", Severity.NOTE, "m"))
    report = Report(command="build", ok=True, findings=(note,), details={"max_rank": 8})
    assert (
        report.dump()
        == """\
{
  "schema_version": 1,
  "command": "build",
  "ok": true,
  "findings": [
    {
      "rule": "r/x",
      "severity": "note",
      "message": "m"
    }
  ],
  "outputs": [],
  "details": {
    "max_rank": 8
  }
}
"""
    )


def test_every_option_tells_what_it_does() -> None:
    for option in fields(BuildOptions):
        assert option.metadata["help"].endswith(".")
    with pytest.raises(FrozenInstanceError):
        BuildOptions().force = True  # type: ignore[misc]


def test_options_load_nothing_heavy() -> None:
    code = (
        "import sys, lora_quant.config.options\n"
        "print([m for m in ('pydantic', 'yaml', 'numpy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"
