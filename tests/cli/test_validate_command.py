"""The command `validate`: what it prints, its options and settings, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jsonschema
import pytest

from lora_quant.cli.main import run
from lora_quant.cli.render_validation import LISTED
from lora_quant.cli.validate_command import FORMATS
from lora_quant.config.schema_files import load_schema
from lora_quant.validation import check_item
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.reports import formats
from tests.conftest import Packs
from tests.validation.packs import SAMPLE

BAD = '{"name": "a", "rank": "8", "alpha": 1, "target_modules": ["q"]}'
GOOD = BAD.replace('"8"', "8")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run where no settings are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(*arguments: str | Path) -> int:
    return run(["validate", *map(str, arguments)])


def test_a_good_pack(packs: Packs, capfd: Capture) -> None:
    pack = packs("adapter_only").output
    assert validate(pack) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"{pack.as_posix()}: pack: ")
    assert lines[-1].startswith("valid")
    assert lines[-1].endswith("(1 checked)")


def test_a_bad_file_beside_a_good_one(here: Path, capfd: Capture) -> None:
    (here / "adapter.json").write_text(BAD)
    assert validate("adapter.json", SAMPLE / "attach_points.json") == 1
    assert capfd.readouterr().out.splitlines() == [
        "adapter.json: adapter JSON: 1 error",
        "  error expected a whole number, got the text '8' (schema/adapter-params)",
        "    where: adapter.json:1:15, field 'rank'",
        "    hint:  remove the quotes",
        f"{(SAMPLE / 'attach_points.json').as_posix()}: attach point mapping: ok",
        "not valid: 1 error (2 checked, 1 of them without findings)",
        "what a rule means: lora-quant validate --explain schema/adapter-params",
    ]


def test_of_many_files_those_without_findings_are_counted(here: Path, capfd: Capture) -> None:
    for number in range(LISTED + 1):
        (here / f"{number:02}.json").write_text(GOOD)
    assert validate(".") == 0
    assert capfd.readouterr().out == f"valid ({LISTED + 1} checked)\n"
    assert validate(".", "--verbose") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "00.json: adapter JSON: ok"
    assert len(lines) == LISTED + 2


def test_names_are_shown_so_that_they_do_nothing(here: Path, capfd: Capture) -> None:
    (here / "a.json").write_text('{"[red]m[/red]": ["n"], "q": [], "[b]": [3]}')
    (here / "new\nline \x1b[31m.json").write_text(BAD)
    (here / "\u540d \u00e9.json").write_text(BAD)
    assert validate(".") == 1
    out = capfd.readouterr().out
    assert "field '[b][0]'" in out
    assert "where: new\\nline \\x1b[31m.json:1:15" in out
    assert "\n\u540d \u00e9.json: adapter JSON: 1 error\n" in out
    assert "\x1b" not in out


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_takes_any_name(form: str, here: Path, capfd: Capture) -> None:
    path = os.fsdecode(os.fsencode(here) + b"/\xff\n.json")
    Path(path).write_text(BAD)
    assert validate(".", "--format", form) == 1
    assert "schema/adapter-params" in capfd.readouterr().out


def test_json(here: Path, capfd: Capture) -> None:
    (here / "a.json").write_text(BAD)
    assert validate("--json", ".") == 1
    printed = capfd.readouterr().out
    report = json.loads(printed)
    jsonschema.Draft202012Validator(load_schema("report")).validate(report)
    assert (report["command"], report["ok"]) == ("validate", False)
    (finding,) = report["findings"]
    assert finding["rule"] == "schema/adapter-params"
    assert finding["where"] == {"file": "a.json", "line": 1, "column": 15, "field": "rank"}
    (checked,) = report["details"]["checked"]
    assert (checked["path"], checked["kind"], checked["problems"]) == ("a.json", "adapter JSON", 1)
    assert validate("--format", "json", ".") == 1
    assert capfd.readouterr().out == printed


def test_reports_are_written_beside_what_is_printed(here: Path, capfd: Capture) -> None:
    (here / "in").mkdir()
    (here / "in" / "a.json").write_text(BAD)
    (here / "old.txt").write_text("old")
    given = [f"--report={form}={here / form}" for form in FORMATS]
    assert validate("in", *given, "--report", f"text={here / 'old.txt'}") == 1
    text = capfd.readouterr().out
    assert (here / "old.txt").read_text() == text
    for form in FORMATS:
        assert validate("in", "--format", form) == 1
        assert capfd.readouterr().out == (here / form).read_text(), form


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr("lora_quant.validation.validate.validate_paths", None)
    assert validate(".", "--report", "json=nowhere/report.json") == 1
    assert "error LQ500" in capfd.readouterr().err


def test_the_formats_are_those_of_the_reports() -> None:
    assert ("text", *formats.FORMATS) == FORMATS


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "Missing argument 'PATH...'"),
        (["a", ""], "a PATH is empty"),
        (["a", "--select", "pack/stray-fil"], "did you mean 'pack/stray-file'"),
        (["a", "--ignore", "devcie"], "did you mean 'device'"),
        (["a", "--json", "--format", "sarif"], "--json and --format sarif exclude each other"),
        (["a", "--config", "x", "--no-config"], "exclude each other"),
        (["a", "--report", "html=x"], "text=, json=, sarif=, github=, junit="),
        (["a", "--report", "json"], "names no file"),
        (["a", "--report", "json=x", "--report", "sarif=x"], "two reports go to 'x'"),
        (["a", "--jobs", "0"], "1<=x<=1024"),
        (["a", "--explain", "pack"], "leave out PATH"),
        (["--explain", "pack/stray"], "did you mean 'pack/stray-file'"),
    ],
)
def test_wrong_usage(given: list[str], told: str, capfd: Capture) -> None:
    assert validate(*given) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert told in " ".join(err.split())


def test_findings_are_selected_ignored_and_counted(
    packs: Packs, here: Path, capfd: Capture
) -> None:
    pack = Path(shutil.copytree(packs("adapter_only").output, here / "pack"))
    (pack / "stray.txt").write_text("")
    assert validate(pack, "--select", "pack/stray-file") == 1
    assert "not valid: 1 error (1 checked" in capfd.readouterr().out
    assert validate(pack, "--ignore", "pack,device,schema", "--ignore", "cross-file") == 0
    assert "findings ignored)" in capfd.readouterr().out.splitlines()[-1]
    assert validate(pack, "--ignore", "pack/stray-file", "--fail-on", "note") == 1


def test_settings_hold_unless_an_option_says_otherwise(here: Path, capfd: Capture) -> None:
    (here / "inner").mkdir()
    (here / "inner" / "config.json").write_text('{"hidden_size": 1}')
    (here / "drafts").mkdir()
    (here / "drafts" / "a.json").write_text(BAD)
    (here / "lora-quant.toml").write_text(
        '[validate]\nfail-on = "note"\nexclude = ["drafts"]\njobs = 1\n'
    )
    assert validate(".") == 1
    assert "not valid: 1 note (1 checked)" in capfd.readouterr().out
    assert validate(".", "--fail-on", "error") == 0
    assert validate(".", "--no-config") == 1
    assert "1 error, 1 note (2 checked)" in capfd.readouterr().out
    other = here / "other.toml"
    other.write_text('[validate]\nignore = ["recognise"]\nexclude = ["drafts"]\n')
    assert validate(".", "--config", other) == 0
    assert (
        capfd.readouterr().out == "inner/config.json: not known: ok\nvalid (1 checked, "
        "1 finding ignored)\n"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('select = ["pakc"]', "did you mean 'pack'"),
        ('exclude = ["../x"]', "leads out of its folder"),
        ('base = "gone.onnx"', "gone.onnx' does not exist"),
        ("jbos = 1", "did you mean 'jobs'"),
    ],
)
def test_wrong_settings_are_told_with_file_and_key(
    line: str, told: str, here: Path, capfd: Capture
) -> None:
    (here / "a.json").write_text(GOOD)
    (here / "lora-quant.toml").write_text(f"[validate]\n{line}\n")
    assert validate("a.json") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert told in err
    assert f"lora-quant.toml, field 'validate.{line.split()[0]}" in err
    assert validate("a.json", "--no-config") == 0


def test_a_base_or_settings_that_are_not_there(here: Path, capfd: Capture) -> None:
    (here / "a.json").write_text(GOOD)
    for option in ("--base", "--config"):
        assert validate("a.json", option, "gone") == 1
        assert "does not exist" in capfd.readouterr().err


def test_lists_are_held_against_the_base_that_is_given(here: Path, capfd: Capture) -> None:
    names = here / "lora_tensor_names.txt"
    names.write_text("/no/such/tensor\n")
    assert validate(names) == 0
    assert validate(names, "--base", SAMPLE / "model" / "model.onnx") == 1
    assert "(list/unknown-tensor)" in capfd.readouterr().out
    (here / "lora-quant.toml").write_text(
        f"[validate]\nbase = '{(SAMPLE / 'model' / 'model.onnx').as_posix()}'\n"
    )
    assert validate(names) == 1
    assert validate(names, "--ignore", "cross-file") == 0


def test_rules_are_explained(capfd: Capture) -> None:
    rule = RULES["pack/stray-file"]
    assert validate("--explain", rule.id) == 0
    text = capfd.readouterr().out
    for part in (rule.id, rule.title, rule.level.value, rule.severity.value, rule.why, rule.mend):
        assert part in text
    for group in ("pack", "cross-file"):
        assert validate("--explain", group) == 0
        lines = capfd.readouterr().out.splitlines()
        listed = [line.split()[0] for line in lines]
        assert listed == sorted(r.id for r in RULES.values() if group in (r.area, r.level.value))


def test_a_defect_of_ours_ends_with_3_and_tells_the_rest(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    for name in ("a.json", "b.json"):
        (here / name).write_text(BAD)

    def fail(path: Path, **more: object) -> object:
        if path.name == "a.json":
            raise KeyError("unforeseen")
        return check_document(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(check_item, "check_document", fail)
    assert validate(".", "--ignore", "schema") == 3
    out, err = capfd.readouterr()
    assert "a.json: not known: 1 error" in out
    assert "KeyError: 'unforeseen' (defect/internal)" in out
    assert "1 finding ignored" in out
    assert err.startswith("Traceback (most recent call last)")
    assert "(for 1 file)" in err


def test_a_path_that_leads_nowhere(capfd: Capture) -> None:
    assert validate("gone.yaml") == 1
    assert "the path is used as given on the command line" in capfd.readouterr().out
