"""Every file below tests/cases is a test: what is given, and exactly what is found where.

A new rule needs a case, or a line in `WITHOUT_CASE` that says why none can be written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.checked import Validation
from lora_quant.validation.request import Request
from lora_quant.validation.rule import ALL_LEVELS, Level
from lora_quant.validation.validate import validate_paths
from tests.validation.case_files import PLACES, Case, case_paths, prepare, read_case
from tests.validation.case_trees import TREES
from tests.validation.emitted_rules import emitted

POSITIVE, NEGATIVE = case_paths("positive"), case_paths("negative")
LEAST_POSITIVE, LEAST_NEGATIVE = 50, 320

WITHOUT_CASE = {
    "defect/crashed": "a file that ends the process would be a defect to be mended",
    "defect/internal": "a file that makes a check fail would be a defect to be mended",
    "device/endless-product": "builds always make two slots; no small edit makes a pack of one",
    "graph/attach-point": "a configuration reports the modules that have no place as its own",
    "qnn-lora-config/section-empty": "an empty path is an error of the line's form",
    "qnn-lora-config/section-shared": "a text has one line, and so one section",
    "qnn-lora-config/unreadable": "files that cannot be read are told apart before their check",
    "recognise/unreadable-folder": "an administrator, as in a container, can read every folder",
}
"""Rule -> why no case can show it."""


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Prepared trees by name, each made once; nobody may change them."""

    @cache
    def made(name: str) -> Path:
        return TREES[name][1](tmp_path_factory.mktemp(name))

    return made


@pytest.fixture
def run(
    tree: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], Validation]:
    """Validates what a case names, from inside of its folder, so that places are relative."""

    def validated(case: Case) -> Validation:
        prepare(case, tmp_path, tree)
        monkeypatch.chdir(tmp_path)
        wanted = case.validate
        request = Request(
            levels=frozenset(Level(level) for level in wanted.levels) or ALL_LEVELS,
            base=None if wanted.base is None else Path(wanted.base),
        )
        return validate_paths([Path(path) for path in wanted.paths], request)

    return validated


@pytest.mark.parametrize("name", NEGATIVE)
def test_negative(name: str, run: Callable[[Case], Validation]) -> None:
    case = read_case(name)
    validation = run(case)
    found = [told(f) for f in validation.findings if f.severity is not Severity.NOTE]
    hint = f"{case.what}\nfound, to be compared with `expect`:\n{as_yaml(found)}"
    assert case.expect, f"a negative case expects something; {hint}"
    for finding in found:
        has_line = "line" in finding or not finding.get("field")
        assert has_line, f"what has a field has a line in its text; {hint}"
    assert sorted(as_place(f, case) for f in found) == sorted(
        as_place(wanted, case) for wanted in case.expect
    ), hint
    for wanted in case.expect:
        same = [f for f in found if as_place(f, case) == as_place(wanted, case)]
        assert any(wanted["message"] in f["message"] for f in same), hint
    assert_notes(case, validation)


@pytest.mark.parametrize("name", POSITIVE)
def test_positive(name: str, run: Callable[[Case], Validation]) -> None:
    case = read_case(name)
    validation = run(case)
    found = [told(f) for f in validation.findings if f.severity is not Severity.NOTE]
    assert not found, f"{case.what}\n{as_yaml(found)}"
    kinds = {i.path.as_posix(): i.kind and i.kind.value for i in validation.checked}
    assert case.kinds, f"a positive case says what its files are: {kinds}"
    assert kinds == dict(case.kinds)
    assert_notes(case, validation)


def assert_notes(case: Case, validation: Validation) -> None:
    """Every note that the case names is found, or says what a file holds."""
    notes = {f.rule for f in validation.findings if f.severity is Severity.NOTE}
    notes.update(f.rule for item in validation.checked for f in item.contents)
    assert set(case.notes) <= notes, f"{case.what}: found the notes {sorted(notes)}"


def told(finding: Finding) -> dict[str, Any]:
    """A finding as `expect` has it, with every part of its place."""
    place = finding.where.as_dict()
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        **{part: place[part] for part in ("file", *PLACES) if part in place},
        "message": finding.message,
    }


def as_place(wanted: Mapping[str, Any], case: Case) -> str:
    """Rule, severity and place: what is compared as a whole.

    Lines in files of a pack would change with whatever a build writes.
    """
    full = {"severity": "error", **wanted}
    if full["file"].startswith("pack/") and full["file"] not in case.files:
        full.update(line=None, column=None)
    return repr([(key, full.get(key)) for key in ("rule", "severity", "file", *PLACES)])


def as_yaml(found: list[dict[str, Any]]) -> str:
    """Findings to be pasted into a case."""
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=1000)


def test_there_are_enough_cases() -> None:
    assert len(NEGATIVE) >= LEAST_NEGATIVE
    assert len(POSITIVE) >= LEAST_POSITIVE


def test_every_negative_case_names_a_file_a_known_rule_and_a_message() -> None:
    for name in NEGATIVE:
        for wanted in read_case(name).expect:
            assert wanted["rule"] in RULES, name
            assert {"file", "message"} <= set(wanted), f"{name}: every finding is in a file"


def test_every_rule_of_validation_has_a_case() -> None:
    """Rules that only a build's own rooms emit are shown by the tests of these rooms."""
    cases = [read_case(name) for name in (*NEGATIVE, *POSITIVE)]
    shown = {wanted["rule"] for case in cases for wanted in case.expect}
    shown.update(rule for case in cases for rule in case.notes)
    places = emitted().places
    own = {r for r, at in places.items() if any(p.startswith("validation/") for p in at)}
    lacking = sorted(own - shown - set(WITHOUT_CASE))
    assert not lacking, f"write a case below tests/cases/negative for {lacking}"
    assert not set(WITHOUT_CASE) & shown, "has a case by now"
    assert set(WITHOUT_CASE) <= own, "is no rule of validation any more"
