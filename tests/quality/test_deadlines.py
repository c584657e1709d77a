"""No property fails because the machine is busy: time is measured by tests/timing.py alone."""

from __future__ import annotations

import re

from hypothesis import settings

from tests.quality.paths import ROOT


def test_no_property_has_a_deadline() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    files = (ROOT / "tests").rglob("*.py")
    given = [
        f"{file.relative_to(ROOT).as_posix()}: {value}"
        for file in files
        for value in re.findall(r"\bdeadline=(\w+)", file.read_text(encoding="utf-8"))
        if value != "None"
    ]
    assert not given, "leave the deadline out: " + ", ".join(given)
