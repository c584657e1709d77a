"""Standard output of another encoding: reports stay UTF-8, text has escapes, nothing breaks off."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from tests.command_line import PROGRAM, environment

NAME = "größe 日本.json"
BROKEN = '{"name": "日本", "rank": "8", "alpha": 1, "target_modules": ["q"]}\n'


def printed(folder: Path, *arguments: str) -> bytes:
    (folder / NAME).write_text(BROKEN, encoding="utf-8")
    done = subprocess.run(
        [*PROGRAM, "validate", NAME, *arguments],
        cwd=folder,
        env=environment(PYTHONIOENCODING="latin-1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    return done.stdout


def test_a_report_is_utf_8(tmp_path: Path) -> None:
    document = json.loads(printed(tmp_path, "--json").decode("utf-8"))
    assert document["details"]["checked"][0]["path"] == NAME
    (case,) = ElementTree.fromstring(printed(tmp_path, "--format", "junit")).iter("testcase")
    assert case.get("file") == NAME


def test_text_has_escapes_for_what_cannot_be_shown(tmp_path: Path) -> None:
    assert printed(tmp_path).decode("latin-1").startswith("größe \\u65e5\\u672c.json: adapter JSON")
