"""docs/adapters.md is generated from the rules and the measured errors."""

from __future__ import annotations

import pytest

from lora_quant.adapters.table import (
    COMMAND,
    MEASURE,
    built_in_rules,
    checkout_folder,
    page,
    read_measured,
)
from tests.adapters.test_conformance import EXACT
from tests.sample import ROOT


def test_the_page_is_that_of_the_rules() -> None:
    written = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert checkout_folder() == ROOT
    assert written == page(read_measured()), f"run {COMMAND} and commit docs/adapters.md"


def test_every_kind_was_measured() -> None:
    assert list(read_measured()) == list(built_in_rules()), f"run {MEASURE}"


@pytest.mark.parametrize("kind", list(built_in_rules()))
def test_a_kind_has_a_class_and_an_update(kind: str) -> None:
    facts = read_measured()[kind]
    row = next(line for line in page({kind: facts}).splitlines() if line.startswith(f"| {kind} |"))
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[1] == ", ".join(facts["classes"])
    assert cells[2]
    # a refusal has no error; the others are those that test_conformance.py allows, plus what PEFT
    # rounds: 2**-24 |W|, which is 3e-5 of the update where that is a 500th of the weight
    assert (facts["error"] is None) is (facts["classes"] == ["refused"])
    assert (facts["error"] or 0.0) <= 30 * EXACT
