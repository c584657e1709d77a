"""JUnit XML, read back by junitparser and by the standard library."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from lora_quant.errors import Where
from lora_quant.findings import Severity
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.junit_report import junit_report
from tests.validation.reports.findings import ODD, sample, validations, warning


def cases(text: str) -> list[TestCase]:
    """The cases; the totals have to agree with them."""
    document = JUnitXml.fromstring(text.encode("utf-8"))
    (suite,) = document
    assert isinstance(suite, TestSuite)
    found = list(suite)
    failures = sum(isinstance(result, Failure) for case in found for result in case.result)
    for totals in (document, suite):
        assert (totals.tests, totals.failures, totals.errors) == (len(found), failures, 0)
    assert not any(isinstance(result, Error) for case in found for result in case.result)
    return found


@given(validations)
def test_it_parses_and_has_one_case_per_file(validation: Validation) -> None:
    text = junit_report(validation)
    found = ET.fromstring(text.encode("utf-8")).findall("./testsuite/testcase")
    assert len(found) == len(validation.checked)
    names = [case.get("name") for case in found]
    assert len(set(names)) == len(names)
    assert any(case.find("failure") is not None for case in found) is not validation.ok


def test_cases_and_their_findings() -> None:
    fine, odd, outside = cases(junit_report(sample()))
    assert (fine.name, fine.classname, fine.result) == ("fine.json", "pack.json", [])
    assert (odd.name, odd._elem.get("file")) == (ODD.as_posix(), ODD.as_posix())
    (failure,) = odd.result
    assert failure.type == "device/block-size"
    assert failure.message == "blocks of 24 values\nare 100% wrong"
    assert f"where: {ODD}:3:5, field 'use-case[0].name'" in failure.text
    assert "a message (an-area/a-rule)" in odd.system_out
    assert "hint:  do nothing" in odd.system_out
    assert outside.result == []
    assert outside.classname == "not known"


def test_what_fails_follows_fail_on() -> None:
    found = cases(junit_report(replace(sample(), fail_on=Severity.NOTE)))
    assert [len(case.result) for case in found] == [0, 1, 1]
    assert found[1].result[0].message.endswith("(and 2 more)")
    assert found[1].system_out is None


def test_what_xml_cannot_hold_is_replaced() -> None:
    odd = "nul \0 escape \x1b not a character \uffff <b>&amp; ]]> end"
    path = Path("a\x01b.json")
    validation = Validation(
        (Checked(path, None, (warning(odd, Where(path)),)),), fail_on=Severity.WARNING
    )
    (case,) = cases(junit_report(validation))
    assert case.name == "a\ufffdb.json"
    assert case.result[0].message == (
        "nul \ufffd escape \ufffd not a character \ufffd <b>&amp; ]]> end"
    )


def test_a_path_that_is_given_twice_makes_two_cases() -> None:
    item = Checked(Path("x.json"), None, ())
    assert [case.name for case in cases(junit_report(Validation((item, item))))] == [
        "x.json",
        "x.json (2)",
    ]
