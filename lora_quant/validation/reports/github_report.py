"""A validation as workflow commands of GitHub: annotations beside the lines that they speak of.

::error file=a.yaml,line=3,col=5,title=schema/unknown-key::unknown key 'nmae'

GitHub shows ten of each severity for a step, so the gravest come first, and where there are more
the first line says how many. Nothing of a file can begin a command: line breaks are escaped.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lora_quant.findings import Finding, Severity
from lora_quant.validation.checked import Validation
from lora_quant.validation.reports.plain_text import plain, plain_finding
from lora_quant.validation.reports.source_root import below, source_root

SHOWN = 10
"""How many annotations of one severity GitHub shows for a step."""

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def github_report(validation: Validation) -> str:
    """One command a line; no text if nothing was found."""
    root = source_root()
    order = list(_COMMANDS)
    pairs = [(item.path, finding) for item in validation.checked for finding in item.findings]
    pairs.sort(key=lambda pair: order.index(pair[1].severity))
    lines = [_annotation(path, finding, root) for path, finding in pairs]
    counts = Counter(finding.severity for _, finding in pairs)
    # The summary is an annotation itself, and takes the place of one notice.
    if any(counts[s] > SHOWN - (s is Severity.NOTE) for s in Severity):
        lines.insert(0, _summary(counts))
    return "".join(f"{line}\n" for line in lines)


def _summary(counts: Counter[Severity]) -> str:
    parts = [f"{counts[s]} {s.value}{'s' * (counts[s] != 1)}" for s in Severity if counts[s]]
    return _command(
        "notice",
        {"title": "lora-quant validate"},
        f"{', '.join(parts)}. GitHub shows the first {SHOWN} of each kind here; the log of the "
        "step has them all.",
    )


def _annotation(path: Path, finding: Finding, root: Path) -> str:
    where = finding.where
    file = where.file or path
    properties = {"file": plain(below(file, root) or file.as_posix())}
    if where.line is not None:
        properties["line"] = str(where.line)
        if where.column is not None:
            properties["col"] = str(where.column)
    properties["title"] = finding.rule
    shown = plain_finding(finding)
    text = f"{shown.message} ({finding.rule})"
    if shown.where:
        text += f"\nwhere: {shown.where}"  # the log of a step leaves the properties out
    if shown.hint:
        text += f"\nhint: {shown.hint}"
    return _command(_COMMANDS[finding.severity], properties, text)


def _command(name: str, properties: dict[str, str], text: str) -> str:
    given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {given}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
