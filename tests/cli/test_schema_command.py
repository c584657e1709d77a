"""`lora-quant schema`: the list, one schema, all of them in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_quant.cli.main import run
from lora_quant.config.schema_files import ALL_SCHEMAS, FILES, load_schema, schema_file, schema_text


def report(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capfd.readouterr().out)
    jsonschema.Draft202012Validator(load_schema("report")).validate(document)
    assert isinstance(document, dict)
    return document


def test_without_a_name_all_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    head, *lines = capfd.readouterr().out.splitlines()
    assert head.split() == ["name", "of", "files", "like"]
    assert [line.split()[0] for line in lines] == list(ALL_SCHEMAS)
    assert [line.split()[-1] for line in lines] == [FILES[name] for name in ALL_SCHEMAS]


def test_the_list_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "--json"]) == 0
    first, *rest = report(capfd)["details"]["schemas"]
    assert first == {
        "name": "lora-config",
        "title": "lora_config.yaml",
        "files": "lora_config*.yaml",
        "schema": "lora-config.1.schema.json",
    }
    assert len(rest) == len(ALL_SCHEMAS) - 1


@pytest.mark.parametrize("more", [[], ["-o", "-"]])
def test_a_schema_is_printed_as_it_is(more: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "pack", *more]) == 0
    assert capfd.readouterr().out == schema_text("pack")


def test_a_schema_in_a_report(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "pack", "--json"]) == 0
    assert report(capfd)["details"]["schema"] == load_schema("pack")


def test_a_schema_in_a_file_or_under_its_name_in_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a schema.json"
    assert run(["schema", "pack", "-o", str(file)]) == 0
    assert capfd.readouterr().out == f"wrote {file.as_posix()}\n"
    assert run(["schema", "pack", "-o", str(tmp_path), "--json"]) == 0
    named = tmp_path / "pack.1.schema.json"
    assert report(capfd)["outputs"] == [named.as_posix()]
    assert file.read_text(encoding="utf-8") == named.read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8") == schema_text("pack")


def test_all_schemas_in_a_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "schemas"
    for _ in range(2):  # the second time everything is there already, and the same
        assert run(["schema", "--all", "-o", str(folder)]) == 0
        assert {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir()} == {
            schema_file(name): schema_text(name) for name in ALL_SCHEMAS
        }


def test_another_file_is_replaced_only_by_force(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pack.1.schema.json"
    file.write_text("{}", encoding="utf-8")
    assert run(["schema", "--all", "-o", str(tmp_path)]) == 1
    assert "the output file exists" in capfd.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert run(["schema", "pack", "-o", str(file), "--force"]) == 0
    assert file.read_text(encoding="utf-8") == schema_text("pack")


def test_a_name_that_is_close(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    assert run(["schema", "lora_config", "-o", str(file)]) == 1
    assert "did you mean 'lora-config'" in capfd.readouterr().err
    assert not file.exists()
    assert run(["schema", "lora_config", "--json"]) == 1
    (finding,) = report(capfd)["findings"]
    assert finding["rule"] == "error/LQ100"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "--all", "-o", "x"], "give NAME or --all, not both"),
        (["--all"], "--all needs a folder"),
        (["--all", "-o", "-"], "--all needs a folder"),
        (["-o", "x"], "-o needs NAME"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["schema", "--all", "-o", str(tmp_path / "file" / "below")]) == 1
    assert "cannot make the folder" in capfd.readouterr().err
