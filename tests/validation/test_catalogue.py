"""Every rule that is emitted is in the catalogue, and has its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_quant import errors
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Severity
from lora_quant.validation import catalogue
from lora_quant.validation.catalogue import RULES, pages
from lora_quant.validation.from_errors import RULES_OF_ERRORS, finding_of, rule_of
from lora_quant.validation.rule import Level, Rule
from tests.validation.emitted_rules import emitted

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LoraQuantError)
]


def test_the_ids_of_all_findings_can_be_read_in_the_sources() -> None:
    assert not emitted().unresolved, "add how they are made to tests/validation/emitted_rules.py"
    assert not emitted().stale, "remove these from tests/validation/emitted_rules.py"


def test_every_rule_that_is_emitted_is_in_the_catalogue() -> None:
    missing = {i: places for i, places in emitted().places.items() if i not in RULES}
    assert not missing, "add a Rule to lora_quant/validation/catalogue/<area>.py"


def test_every_rule_of_the_catalogue_is_emitted() -> None:
    unused = sorted(set(RULES) - set(emitted().places))
    assert not unused, "nothing emits these: remove them from lora_quant/validation/catalogue"


def test_a_rule_has_the_gravest_severity_that_it_is_emitted_with() -> None:
    order = list(Severity)
    for rule_id, found in emitted().severities.items():
        if found:
            assert RULES[rule_id].severity is min(found, key=order.index), rule_id


def test_ids_are_unique_and_every_file_of_rules_is_listed() -> None:
    listed = [rule.id for area in catalogue._AREAS for rule in area.RULES]
    assert len(listed) == len(set(listed)) == len(RULES)
    folder = Path(catalogue.__file__).parent
    with_rules = {
        file.stem for file in folder.glob("*.py") if "\nRULES = " in file.read_text("utf-8")
    }
    assert with_rules == {area.__name__.rpartition(".")[2] for area in catalogue._AREAS}


def test_the_texts_of_a_rule_are_plain_sentences() -> None:
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*/[a-z0-9]+([-.][a-z0-9]+)*", rule.id), rule.id
        assert not rule.title.endswith("."), rule.id
        assert len(rule.title) <= 100, rule.id
        for text in (rule.why, rule.mend):
            assert re.fullmatch(r"[A-Z0-9`][^\n]*[.?]", text), f"{rule.id}: {text}"
            assert "  " not in text, rule.id
            assert len(text) <= 500, rule.id


def test_every_page_is_up_to_date() -> None:
    folder = pages.checkout_folder()
    texts = pages.pages()
    written = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*.md")
    }
    assert written == texts, f"docs/rules is out of date: run {pages.COMMAND}"


def test_pages_are_written_and_those_of_rules_that_are_gone_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "pack" / "was-here-once.md"
    gone.parent.mkdir()
    gone.write_text("old", encoding="utf-8")
    monkeypatch.setattr(pages, "checkout_folder", lambda: tmp_path)
    written = pages.main()
    assert not gone.exists()
    assert sorted(written) == sorted(tmp_path.rglob("*.md"))


def test_a_page_says_what_why_and_what_to_do() -> None:
    rule = Rule(
        "pack/example",
        Level.CROSS_FILE,
        Severity.WARNING,
        "pack.json is an example",
        "Because it is.",
        "Leave it.",
    )
    texts = pages.pages([rule])
    page = texts["pack/example.md"]
    assert "# pack/example\n\npack.json is an example.\n" in page
    assert "| cross-file | warning |" in page
    assert "\nBecause it is.\n" in page
    assert "\nLeave it.\n" in page
    assert "--ignore pack/example" in page
    row = "| [pack/example](pack/example.md) | warning | pack.json is an example. |"
    assert row in texts[pages.INDEX]


def test_the_page_of_a_defect_does_not_say_how_to_ignore_it() -> None:
    assert "cannot be ignored" in pages.pages()["defect/internal.md"]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_a_rule(kind: type[LoraQuantError]) -> None:
    assert rule_of(kind("message")) in RULES.values()


def test_no_row_of_the_table_of_errors_is_hidden_by_one_before_it() -> None:
    for kind, rule in RULES_OF_ERRORS:
        assert rule_of(kind("message")) is rule


def test_the_finding_of_an_error_keeps_its_words_and_gets_the_file_that_is_shown(
    tmp_path: Path,
) -> None:
    error = errors.AttachPointError("lost", where=Where(tmp_path, module="q"), hint="look")
    finding = finding_of(error, shown=Path("model.onnx"))
    assert (finding.rule, finding.message, finding.hint) == ("graph/attach-point", "lost", "look")
    assert finding.where == Where(Path("model.onnx"), module="q")
