"""Tables that a script measures and prints by itself, unlike the cases of run.py.

Each has a place of its own in README.md, between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from measure import CommandFailedError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """A script that prints Markdown; `takes_olive`: whether it has the option --olive."""

    name: str
    title: str
    script: str
    takes_olive: bool = False

    def text(self, olive: str | None) -> str:
        """What the script prints; CommandFailedError if it does not end well."""
        command = [sys.executable, str(HERE / self.script)]
        if olive is not None and self.takes_olive:
            command += ["--olive", olive]
        done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
        if done.returncode != 0:
            raise CommandFailedError(f"{' '.join(command)}: exit {done.returncode}")
        return done.stdout


TABLES = (
    Table(
        "switching",
        "use cases in ONNX Runtime: idle and working branches, switches",
        "case_switching.py",
        takes_olive=True,
    ),
    Table(
        "sqnr",
        "shared encodings against those of each adapter",
        "case_encodings_sqnr.py",
    ),
    Table(
        "validate",
        "validate over thousands of small files",
        "case_validate.py",
    ),
)


def write_section(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a section."""
    marks = re.compile(rf"(<!-- {name} -->\n).*(<!-- end of {name} -->)", re.DOTALL)
    old = readme.read_text(encoding="utf-8")
    new = marks.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", old)
    readme.write_text(new, encoding="utf-8")
