"""What holds for every format, whatever the names and messages are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from lora_quant.validation.checked import Validation
from lora_quant.validation.reports.formats import FORMATS
from tests.validation.reports.findings import sample, validations


@given(validations)
def test_text_is_utf_8_and_equal_for_equal_validations(validation: Validation) -> None:
    for name, report in FORMATS.items():
        text = report(validation)
        assert text == report(replace(validation)), name
        assert text.encode("utf-8").decode("utf-8") == text, name
        assert text.endswith("\n") or text == "", name


@pytest.mark.parametrize("name", FORMATS)
def test_a_report_of_nothing_is_one(name: str) -> None:
    FORMATS[name](Validation(()))


@pytest.mark.parametrize("name", FORMATS)
def test_a_report_does_not_depend_on_the_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = set()
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        texts.add(FORMATS[name](sample()))
    assert len(texts) == 1
