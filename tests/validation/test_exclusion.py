"""Glob patterns of what is left out: by name at any depth, or by path below one folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_quant.errors import ConfigError
from lora_quant.validation.found.exclusion import Exclusion, check_pattern


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("drafts", "drafts", True),
        ("drafts", "a/b/drafts", True),
        ("drafts/", "a/drafts", True),
        ("drafts", "a/drafts.json", False),
        ("*.encodings", "a/b/tone.encodings", True),
        ("*.encodings", "a/tone.encodings.json", False),
        ("a/*.json", "a/x.json", True),
        ("a/*.json", "a/b/x.json", False),
        ("/a/*.json", "a/x.json", True),
        ("./a/*.json", "a/x.json", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**/b/x.json", "b/x.json", True),
        ("**/b/x.json", "a/a/b/x.json", True),
        ("a/**/x.json", "a/x.json", True),
        ("a/**/x.json", "a/b/c/x.json", True),
        ("a/**/x.json", "b/a/x.json", False),
        ("?.json", "a/x.json", True),
        ("?.json", "a/xy.json", False),
        ("[ab].json", "b.json", True),
        ("[!ab].json", "b.json", False),
        ("[a-c].json", "b.json", True),
        ("[ab.json", "[ab.json", True),
        ("[]].json", "].json", True),
        ("a+(b).json", "a+(b).json", True),
        ("A.json", "a.json", False),
        ("*", "new\nline", True),
        pytest.param(
            "b.json",
            "a\\b.json",
            False,
            marks=pytest.mark.skipif(os.sep != "/", reason="files of POSIX"),
        ),
    ],
)
def test_a_pattern_matches_a_path(pattern: str, path: str, expected: bool, tmp_path: Path) -> None:
    exclusion = Exclusion((pattern,), tmp_path)
    assert exclusion.matches(str(tmp_path.resolve() / path)) is expected


def test_paths_elsewhere_match_by_name_alone(tmp_path: Path) -> None:
    exclusion = Exclusion(("x.json", "a/*"), tmp_path / "here")
    assert exclusion.matches(str(tmp_path / "there" / "x.json"))
    assert not exclusion.matches(str(tmp_path / "a" / "y.json"))
    assert not Exclusion().matches(str(tmp_path / "x.json"))


@pytest.mark.parametrize("pattern", ["", "/", "../x", "a/../b"])
def test_patterns_that_match_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches nothing"):
        check_pattern(pattern)
