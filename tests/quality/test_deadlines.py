"""No property fails because the machine is busy: time is measured by tests/timing.py alone."""

from __future__ import annotations

from hypothesis import settings


def test_no_property_has_a_deadline() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
