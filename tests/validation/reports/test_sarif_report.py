"""SARIF 2.1.0: by models made from the standard's schema, and by the limits that GitHub documents.

`tests/ci/test_sarif_tools.py` has Microsoft's own validator say the same.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Sarif

from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.sarif_report import MOST_RESULTS, sarif_report
from lora_quant.validation.reports.sarif_rules import sarif_rule
from tests.validation.reports.findings import FIELD, ODD, TENSOR, many, sample, validations, warning

GITHUB_BYTES = 25 * 2**20
"""GitHub takes no larger file, compressed."""
GITHUB_TEXT = 1024
"""GitHub cuts descriptions of rules after so many characters."""
GITHUB_TAGS = 10


def run_of(validation: Validation) -> dict[str, Any]:
    """The one run of a log that the standard accepts."""
    log = json.loads(sarif_report(validation))
    Sarif.model_validate(log)
    (run,) = log["runs"]
    assert isinstance(run, dict)
    return run


def results_of(*findings: Finding) -> list[dict[str, Any]]:
    results = run_of(Validation((Checked(ODD, None, findings),)))["results"]
    assert isinstance(results, list)
    return results


@given(validations)
def test_it_is_of_the_standard(validation: Validation) -> None:
    run = run_of(validation)
    rules = run["tool"]["driver"]["rules"]
    assert len(run["results"]) == len(validation.findings)
    for result, finding in zip(run["results"], validation.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.rule
        assert result["level"] == finding.severity.value
        assert result["message"]["text"]
    prints = [json.dumps(result["partialFingerprints"]) for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_a_result_has_its_place() -> None:
    error, first, second, outside = run_of(sample())["results"]
    (location,) = error["locations"]
    assert location["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 5}
    artifact = location["physicalLocation"]["artifactLocation"]
    assert artifact["uriBaseId"] == "%SRCROOT%"
    assert artifact["uri"].isascii()
    assert not set(" #?:,") & set(artifact["uri"])
    assert unquote_to_bytes(artifact["uri"]).decode("utf-8") == ODD.as_posix()
    assert location["logicalLocations"] == [{"name": "use-case[0].name", "kind": "property"}]
    (location,) = first["locations"]
    assert "region" not in location["physicalLocation"]
    assert {part["kind"]: part["name"] for part in location["logicalLocations"]} == {
        "use case": "both",
        "adapter": "tone",
        "module": "a.b",
        "tensor": "/x/y",
        "node": "/n",
    }
    (location,) = second["locations"]  # names no place, so the file that was checked
    assert location["physicalLocation"]["artifactLocation"] == artifact
    (location,) = outside["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {
        "uri": "file:///elsewhere/pack/%FF.bin"
    }


def test_the_message_ends_with_the_hint() -> None:
    with_hint, without = results_of(
        replace(warning("no dot"), hint="do this"), replace(warning("a dot."), hint=None)
    )
    assert with_hint["message"]["text"] == "no dot.\ndo this."
    assert without["message"]["text"] == "a dot."


def test_the_invocation_is_a_success_however_much_is_found() -> None:
    assert run_of(sample())["invocations"] == [{"executionSuccessful": True}]


def fingerprint(finding: Finding) -> str:
    (result,) = results_of(finding)
    (value,) = result["partialFingerprints"].values()
    assert isinstance(value, str)
    return value


def test_a_fingerprint_stays_when_lines_move_or_values_change() -> None:
    before = warning("got 3")
    assert fingerprint(before) == fingerprint(
        replace(before, message="got 4", where=replace(FIELD, line=30, column=1))
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(warning(), rule="an-area/another"),
        warning(where=replace(FIELD, field="use-case[1].name")),
        warning(where=replace(FIELD, tensor="t")),
        warning(where=replace(FIELD, file=Path("other.yaml"))),
        warning(where=TENSOR),
    ],
)
def test_a_fingerprint_tells_findings_apart(other: Finding) -> None:
    assert fingerprint(warning()) != fingerprint(other)


def test_every_rule_says_what_github_wants() -> None:
    for rule in RULES:
        descriptor = sarif_rule(rule)
        assert descriptor["name"].isalnum(), rule
        assert len(descriptor["name"]) < 256, rule
        for part in ("shortDescription", "fullDescription"):
            assert 0 < len(descriptor[part]["text"]) <= GITHUB_TEXT, rule
        assert set(descriptor["help"]) == {"text", "markdown"}, rule
        tags = descriptor["properties"]["tags"]
        assert len(set(tags)) == len(tags) <= GITHUB_TAGS, rule
        assert descriptor["properties"]["level"] in {"schema", "cross-file", "device"}, rule


def test_more_results_than_github_takes_leave_the_lightest_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lora_quant.validation.reports.sarif_report.MOST_RESULTS", 5)
    path = Path("last.json")
    last = Checked(path, None, (Finding("z/z", Severity.ERROR, "grave", Where(path)),))
    run = run_of(Validation((*many(7).checked, last)))
    assert [result["level"] for result in run["results"]] == ["error", *["warning"] * 4]
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"].startswith("3 findings were left out")


@pytest.mark.slow
def test_the_largest_log_is_one_that_github_takes() -> None:
    text = sarif_report(many(MOST_RESULTS))
    assert len(gzip.compress(text.encode("utf-8"), 1)) < GITHUB_BYTES
    assert "left out" not in text
