"""Paths that a person names, in Python and on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from lora_quant.cli.validate_command import validate_command
from lora_quant.config.schemas import load_schema
from lora_quant.findings import Severity
from lora_quant.validation.kinds import Kind
from lora_quant.validation.validate import validate_paths
from tests.validation.packs import SAMPLE, rules

BAD_ADAPTER = '{"name": "a", "rank": "8", "alpha": 1, "target_modules": ["q"]}'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(validate_command, [str(a) for a in arguments], standalone_mode=False)


def test_the_sample_is_valid() -> None:
    result = validate_paths([SAMPLE])
    assert result.ok, result.findings
    kinds = {item.kind for item in result.checked}
    assert {
        Kind.LORA_CONFIG,
        Kind.PEFT_CONFIG,
        Kind.ATTACH_POINTS,
        Kind.ENCODINGS_1_0_0,
    } <= kinds


def test_a_pack_in_a_folder_is_one_item(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path])
    assert [(i.path, i.kind, i.problems) for i in result.checked] == [
        (tmp_path / "adapter.json", Kind.ADAPTER_PARAMS, 1),
        (pack, Kind.PACK, 0),
    ]
    assert rules(result.findings) == ["pack/not-filled-in", "schema/adapter-params"]
    assert not result.ok


def test_a_pack_named_by_its_manifest_is_checked_as_a_document(pack: Path) -> None:
    (item,) = validate_paths([pack / "pack.json"]).checked
    assert (item.kind, item.findings) == (Kind.MANIFEST, ())


def test_paths_are_checked_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.json", "a.json"):
        (tmp_path / name).write_text(BAD_ADAPTER)
    paths = [tmp_path / "b.json", tmp_path / "a.json"]
    assert [i.path for i in validate_paths(paths).checked] == paths


def test_unknown_file_matters_only_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 64}')
    (named,) = validate_paths([file]).findings
    assert (named.rule, named.severity) == ("recognise/unknown", Severity.ERROR)
    met = validate_paths([tmp_path])
    assert [f.severity for f in met.findings] == [Severity.NOTE]
    assert met.ok


def test_binary_file(tmp_path: Path) -> None:
    for name in ("model.onnx", "broken.json"):
        (tmp_path / name).write_bytes(b"\x08\x00\x12")
    (finding,) = validate_paths([tmp_path / "model.onnx"]).findings
    assert (finding.rule, finding.severity) == ("recognise/binary", Severity.ERROR)
    assert [i.path.name for i in validate_paths([tmp_path]).checked] == ["broken.json"]


def test_missing_path(tmp_path: Path) -> None:
    (finding,) = validate_paths([tmp_path / "gone.yaml"]).findings
    assert finding.rule == "document/LQ110"
    assert finding.where.file == tmp_path / "gone.yaml"


def test_folder_without_anything_to_check(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.json").write_text("{")
    (finding,) = validate_paths([tmp_path]).findings
    assert finding.rule == "recognise/nothing"
    assert finding.where.file == tmp_path


def test_yaml_and_json_are_told_apart_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("name: both\nadapters: []\n")
    (tmp_path / "b.txt").write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert [i.kind for i in result.checked] == [Kind.RUN_CONFIG, Kind.ADAPTER_PARAMS]


def test_command_on_a_good_pack(built: Path) -> None:
    result = run(built)
    assert result.return_value == 0
    lines = result.output.splitlines()
    assert lines[0] == f"{built.as_posix()}: pack: 1 note"
    assert lines[1].startswith("  note 4 files have entries that only the device compiler knows")
    assert lines[-1] == "valid (1 checked)"


def test_command_on_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter.json").write_text(BAD_ADAPTER)
    result = run("adapter.json", SAMPLE / "attach_points.json")
    assert result.return_value == 1
    assert result.output.splitlines() == [
        "adapter.json: adapter JSON: 1 error",
        "  error expected a whole number, got the text '8' (schema/adapter-params)",
        "    where: adapter.json:1:15, field 'rank'",
        "    hint:  remove the quotes",
        f"{(SAMPLE / 'attach_points.json').as_posix()}: attach point mapping: ok",
        "1 problem (2 checked)",
    ]


def test_command_shows_brackets_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"[red]m[/red]": ["n"], "q": [], "[b]": [3]}')
    output = run(tmp_path / "a.json").output
    assert "field '[b][0]'" in output


def test_json_report(pack: Path, tmp_path: Path) -> None:
    (pack / "stray.txt").write_text("")
    result = run("--json", pack)
    assert result.return_value == 1
    report = json.loads(result.output)
    Draft202012Validator(load_schema("report")).validate(report)
    assert report["command"] == "validate"
    assert report["ok"] is False
    assert [f["rule"] for f in report["findings"]] == ["pack/stray-file", "pack/not-filled-in"]
    assert report["findings"][0]["where"]["file"] == (pack / "stray.txt").as_posix()
    assert report["details"]["checked"] == [
        {"path": pack.as_posix(), "kind": "pack", "problems": 1}
    ]


def test_equal_runs_print_equal_reports(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SAMPLE / "adapters", tmp_path / "adapters"))
    assert run("--json", copy).output == run("--json", copy).output


def test_command_wants_a_path() -> None:
    result = run()
    assert isinstance(result.exception, click.UsageError)
    assert "PATH..." in result.exception.format_message()
