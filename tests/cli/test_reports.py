"""Reports as JSON, also of commands that are refused or break off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_quant.cli.main import run
from tests.conftest import Packs
from tests.sample import CONFIG, ROOT, edit_json, make_float

REPORT = json.loads((ROOT / "schemas" / "report.1.schema.json").read_text(encoding="utf-8"))


def parsed(text: str) -> dict[str, object]:
    document = json.loads(text)
    jsonschema.Draft202012Validator(REPORT).validate(document)
    assert isinstance(document, dict)
    return document


def test_build_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "an :100: [odd] name"  # markup and emoji codes stay what they are
    assert run(["build", str(CONFIG), "-o", str(out), "--mode", "none", "--json"]) == 0
    text, err = capfd.readouterr()
    assert err == ""
    report = parsed(text)
    assert report["command"] == "build"
    assert report["ok"] is True
    assert report["outputs"] == [out.as_posix()]
    findings = report["findings"]
    assert isinstance(findings, list)
    assert {f["rule"] for f in findings} == {"updatable/fixed-in-mode", "encodings/united"}


def test_verify_report_and_exit_code(packs: Packs, capfd: pytest.CaptureFixture[str]) -> None:
    pack = str(packs("adapter_only").output)
    assert run(["verify", pack, "--json"]) == 0
    report = parsed(capfd.readouterr().out)
    assert report["ok"] is True
    details = report["details"]
    assert isinstance(details, dict)
    (target,) = details["targets"]
    assert (target["target"], target["ok"], target["base_exact"]) == ("qairt", True, True)
    assert {e["use_case"] for e in target["errors"]} == {"base", "tone", "legal", "style", "both"}
    assert all(e["ok"] for e in target["errors"])


def test_verify_fails_with_1(sample: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = sample.parent / "out"
    assert run(["build", str(make_float(sample)), "-o", str(out)]) == 0
    edit_json(out / "pack.json", lambda d: d["use_cases"][4]["slots"][0].update(alpha=1.01))
    capfd.readouterr()
    assert run(["verify", str(out)]) == 1
    text, err = capfd.readouterr()
    assert err == ""
    failed = [line.split()[0] for line in text.splitlines() if line.endswith("FAILED")]
    assert failed == ["both"]
    assert text.splitlines()[-1] == "verification failed for qairt"
    assert run(["verify", str(out), "--json"]) == 1
    assert parsed(capfd.readouterr().out)["ok"] is False


def stopped(arguments: list[str], code: int, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one finding of the report of a command that stops."""
    assert run([*arguments, "--json"]) == code
    text, err = capfd.readouterr()
    assert err
    report = parsed(text)
    assert report["command"] == arguments[0]
    assert report["ok"] is False
    findings = report["findings"]
    assert isinstance(findings, list)
    (finding,) = findings
    assert isinstance(finding, dict)
    assert finding["severity"] == "error"
    return finding


def test_a_refused_command_reports_the_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    finding = stopped(["build", str(CONFIG), "-o", str(out)], 1, capfd)
    assert finding["rule"] == "error/LQ500"
    assert "it is not a pack" in finding["message"]
    assert finding["where"] == {"file": out.as_posix()}
    assert finding["hint"] == "choose another output folder, or empty this one"
    assert stopped(["verify", str(out)], 1, capfd)["rule"] == "error/LQ110"


@pytest.mark.parametrize(
    ("error", "code", "rule"),
    [
        (RuntimeError("unforeseen"), 3, "error/internal"),
        (KeyboardInterrupt(), 130, "error/interrupted"),
    ],
)
@pytest.mark.parametrize(
    ("command_name", "place"),
    [
        ("build", "lora_quant.api.build"),
        ("verify", "lora_quant.runtime.verify.verify.verify"),
        ("validate", "lora_quant.validation.validate.validate_paths"),
    ],
)
def test_a_command_that_breaks_off_reports_it(
    command_name: str,
    place: str,
    error: BaseException,
    code: int,
    rule: str,
    packs: Packs,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pack = packs("adapter_only").output

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    given = [str(CONFIG), "-o", str(pack)] if command_name == "build" else [str(pack)]
    assert stopped([command_name, *given], code, capfd)["rule"] == rule
