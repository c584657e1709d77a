"""Annotations, read back by the rules of GitHub's runner."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given

from lora_quant.errors import Where
from lora_quant.findings import Severity
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.github_report import github_report
from tests.validation.reports.findings import ODD, many, sample, validations, warning

COMMAND = re.compile(r"::(error|warning|notice) ([^\n]*?)::([^\r\n]*)")
_DATA = {"%25": "%", "%0D": "\r", "%0A": "\n"}
_PROPERTY = _DATA | {"%3A": ":", "%2C": ","}


def unescaped(text: str, table: dict[str, str]) -> str:
    return re.sub("%[0-9A-F]{2}", lambda m: table[m.group()], text)


def read_back(text: str) -> list[tuple[str, dict[str, str], str]]:
    """(command, properties, message) of each line; every line has to be a command."""
    found = []
    for line in text.split("\n")[:-1]:
        match = COMMAND.fullmatch(line)
        assert match is not None, line
        name, given_properties, message = match.groups()
        pairs = (part.split("=", 1) for part in given_properties.split(","))
        properties = {key: unescaped(value, _PROPERTY) for key, value in pairs}
        found.append((name, properties, unescaped(message, _DATA)))
    return found


@given(validations)
def test_every_line_is_one_command(validation: Validation) -> None:
    found = read_back(github_report(validation))
    assert len(found) == len(validation.findings)
    assert [properties["title"] for _, properties, _ in found] == [
        f.rule for severity in Severity for f in validation.findings if f.severity is severity
    ]


def test_place_and_text_come_through_whole() -> None:
    error, first, second, note = read_back(github_report(sample()))
    assert error[0] == "error"
    assert error[1] == {
        "file": ODD.as_posix(),
        "line": "3",
        "col": "5",
        "title": "device/block-size",
    }
    assert error[2].splitlines()[:2] == [
        "blocks of 24 values",
        "are 100% wrong (device/block-size)",
    ]
    assert error[2].splitlines()[-1].startswith("hint: Quantize")
    assert "tensor '/x/y'" in first[2]
    assert second[1]["file"] == "/elsewhere/pack/\\udcff.bin"
    assert note[0] == "notice"
    assert note[1] == {"file": ODD.as_posix(), "title": "an-area/another"}


@pytest.mark.parametrize(
    ("severity", "count", "is_summed_up"),
    [
        (Severity.ERROR, 10, False),
        (Severity.ERROR, 11, True),
        (Severity.WARNING, 11, True),
        (Severity.NOTE, 9, False),
        (Severity.NOTE, 10, True),  # with the summary there would be eleven
    ],
)
def test_more_than_github_shows_is_summed_up_first(
    severity: Severity, count: int, is_summed_up: bool
) -> None:
    found = read_back(github_report(many(count, severity)))
    assert len(found) == count + is_summed_up
    if is_summed_up:
        name, properties, message = found[0]
        assert (name, properties) == ("notice", {"title": "lora-quant validate"})
        assert message.startswith(f"{count} {severity.value}s. GitHub shows the first 10")


def test_paths_count_from_the_checkout_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "below"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = Path("../x.json")
    validation = Validation((Checked(path, None, (warning(where=Where(path)),)),))
    for name, file in ((str(tmp_path), "x.json"), (str(tmp_path / "no"), "../x.json")):
        monkeypatch.setenv("GITHUB_WORKSPACE", name)
        ((_, properties, _),) = read_back(github_report(validation))
        assert properties["file"] == file
