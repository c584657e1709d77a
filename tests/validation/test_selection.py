"""Which findings are told: selectors, what wins, and what is told in any case."""

from __future__ import annotations

import pytest

from lora_quant.errors import ConfigError
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.catalogue.defect import INTERNAL
from lora_quant.validation.checked import Checked
from lora_quant.validation.kinds import Kind
from lora_quant.validation.rule import ALL_LEVELS, Level
from lora_quant.validation.selection import EVERY_RULE, Selection, parse_selectors
from tests.validation.packs import SAMPLE

STRAY = RULES["pack/stray-file"]
BLOCKS = RULES["device/block-size"]
FORM = RULES["schema/adapter-params"]


def kept(selection: Selection, *findings: Finding) -> list[str]:
    return [f.rule for f in findings if selection.keeps(f)]


def selection(select: str = "", ignore: str = "") -> Selection:
    return Selection(parse_selectors([select]), parse_selectors([ignore]))


def test_the_rules_of_these_tests_are_of_three_levels() -> None:
    assert [r.level for r in (FORM, STRAY, BLOCKS)] == list(Level)


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [
        ("", "", [STRAY.id, BLOCKS.id]),
        ("pack", "", [STRAY.id]),
        ("pack/stray-file", "", [STRAY.id]),
        ("cross-file", "", [STRAY.id]),
        ("cross-file,device", "", [STRAY.id, BLOCKS.id]),
        ("", "device", [STRAY.id]),
        ("", "pack , device/block-size", []),
        ("pack", "cross-file", []),
        ("cross-file", "pack/stray-file", []),
        ("schema", "", []),
    ],
)
def test_selectors_are_rules_areas_and_levels(
    select: str, ignore: str, expected: list[str]
) -> None:
    asked = selection(select, ignore)
    assert kept(asked, STRAY.finding("stray"), BLOCKS.finding("blocks")) == expected


def test_what_is_dropped_is_counted() -> None:
    findings = (STRAY.finding("one"), STRAY.finding("two"), BLOCKS.finding("three"))
    checked = Checked(SAMPLE, Kind.PACK, findings, ignored=1)
    applied = selection(ignore="pack").apply(checked)
    assert [f.message for f in applied.findings] == ["three"]
    assert applied.ignored == 3
    assert EVERY_RULE.apply(checked) is checked


def test_levels_that_nobody_wants_are_not_wanted() -> None:
    assert EVERY_RULE.levels == ALL_LEVELS
    assert selection("device").levels == {Level.DEVICE}
    assert selection(ignore="device").levels == ALL_LEVELS - {Level.DEVICE}
    assert selection("pack/stray-file").levels == {Level.CROSS_FILE}
    assert selection("device", "device").levels == frozenset()


def test_what_keeps_a_file_from_being_looked_at_is_told_though_not_selected() -> None:
    missing = Finding("document/missing", Severity.ERROR, "it is not there")
    form = FORM.finding("no number")
    note = Finding("recognise/unknown", Severity.NOTE, "no idea")
    assert kept(selection("device"), missing, form, note) == [missing.rule, form.rule]
    assert kept(selection("schema/pack"), missing, form, note) == [missing.rule]
    assert kept(selection("device", "schema"), missing, form) == []


def test_defects_are_always_told() -> None:
    broken = INTERNAL.finding("KeyError")
    assert kept(selection("device", "schema"), broken) == [INTERNAL.id]
    for selector in ("defect", INTERNAL.id):
        with pytest.raises(ConfigError, match="tells of defects of lora-quant"):
            parse_selectors([selector])


def test_findings_of_rules_that_are_not_in_the_catalogue_go_by_their_area() -> None:
    plugin = Finding("pack/of-a-plugin", Severity.NOTE, "x")
    assert kept(EVERY_RULE, plugin) == [plugin.rule]
    assert kept(selection("pack"), plugin) == [plugin.rule]
    assert kept(selection("device"), plugin) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("pack/stray-fil", "'pack/stray-file'"),
        ("devcie", "did you mean 'device'"),
        ("Schema", "did you mean 'schema'"),
        ("schema,qqqqqq", "known: "),
    ],
)
def test_unknown_selectors_are_refused_with_the_closest(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="there is no rule, area or level") as caught:
        parse_selectors([text])
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_selectors_come_with_commas_or_one_by_one() -> None:
    assert parse_selectors(["pack, device", "schema", ","]) == {"pack", "device", "schema"}
    assert parse_selectors([]) == frozenset()
