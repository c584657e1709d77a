"""A `lora_config` text of ONNX Runtime's QNN provider: its one line, by itself and in a pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_quant.config.placeholders import is_placeholder
from lora_quant.config.qnn_lora_config import SEPARATOR, QnnLoraConfig, parse_line
from lora_quant.config.regular_file import open_regular
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import JSON_SUFFIXES, YAML_SUFFIXES
from lora_quant.validation.files.sections import (
    GRAPH_HINT,
    NamedSection,
    check_sections,
    open_entry,
)

TEXT_NAME = "lora_config.txt"
"""How names of such files end."""

_AREA = "qnn-lora-config"
_MOST_BYTES = 64 * 1024
_FORM = "write one line: graph name;section path"
_QUOTES = ("'", '"')


def is_lora_config_text(path: Path) -> bool:
    """Whether a file has the name of such a text, or holds one line with one semicolon."""
    if path.name.lower().endswith(TEXT_NAME):
        return True
    if path.suffix.lower() in (*YAML_SUFFIXES, *JSON_SUFFIXES):
        return False
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return False
    lines = content.splitlines()
    return len(lines) == 1 and lines[0].count(SEPARATOR.encode()) == 1 and b"\0" not in content


def check_lora_config_text(path: Path) -> tuple[Finding, ...]:
    """Findings of a file on its own; bad content never raises."""
    text = read_text(path, path)
    if isinstance(text, Finding):
        return (text,)
    return (*line_findings(text, path), *_entries(text, path))


def read_text(path: Path, shown: Path) -> str | Finding:
    """The content, or why there is none that could be looked at."""
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            return _error("size", f"the file has more than {_MOST_BYTES} bytes", shown, hint=_FORM)
        return content.decode("utf-8")
    except OSError as error:
        return _error("unreadable", f"it cannot be read: {error.strerror or error}", shown)
    except UnicodeDecodeError as error:
        return _error(
            "characters", f"it is not UTF-8 text: {error}", shown, hint="save it as UTF-8"
        )


def line_findings(text: str, shown: Path) -> Iterator[Finding]:
    """What an engine would not find, or take for a part of a name."""
    if text.startswith("\ufeff"):
        yield _error(
            "characters", "it begins with a byte order mark", shown, 1, "save it as plain UTF-8"
        )
        text = text.removeprefix("\ufeff")
    lines = text.removesuffix("\n").split("\n")
    if not text.strip():
        yield _error("form", "the file is empty", shown, hint=_FORM)
        return
    yield from _line(lines[0], shown)
    rest = [number for number, line in enumerate(lines[1:], start=2) if line.strip()]
    if rest:
        yield Finding(
            f"{_AREA}/more-lines",
            Severity.WARNING,
            f"the file has {len(rest)} more line(s): only the first is known to be read",
            Where(file=shown, line=rest[0]),
            "write a file for each graph, and give each session its own",
        )


def _line(line: str, shown: Path) -> Iterator[Finding]:
    if line.endswith("\r"):
        yield Finding(
            f"{_AREA}/characters",
            Severity.WARNING,
            "the line ends with a carriage return, which may be taken for a part of the path",
            Where(file=shown, line=1),
            "save it with line ends of Linux",
        )
        line = line.removesuffix("\r")
    entry = parse_line(line)
    if entry is None:
        count = line.count(SEPARATOR)
        got = f"{count} semicolons" if count else "no semicolon"
        yield _error("form", f"expected graph name;section path, got {got}", shown, 1, _FORM)
        return
    for what, part in (("graph name", entry.graph), ("section path", entry.section)):
        if not part.strip():
            yield _error("form", f"the {what} is empty", shown, 1, _FORM)
        elif part != part.strip():
            message = f"white space around the {what} is taken for a part of it: {part!r}"
            yield _error("characters", message, shown, 1, "remove it")
        if any(not character.isprintable() for character in part.strip()):
            message = f"the {what} has control characters: {part!r}"
            yield _error("characters", message, shown, 1, "remove them")
        if part.strip().startswith(_QUOTES) or part.strip().endswith(_QUOTES):
            message = f"quotes around the {what} are taken for a part of it: {part!r}"
            yield _error("characters", message, shown, 1, "remove them")


def _entries(text: str, path: Path) -> Iterator[Finding]:
    entry = first_entry(text)
    if entry is None:
        return
    where = Where(file=path, line=1)
    if is_placeholder(entry.graph):
        yield open_entry(_AREA, "the name of the graph", where, GRAPH_HINT)
    # Quotes are reported already, and nobody has a file of that name.
    text = entry.section.strip().strip("".join(_QUOTES))
    if text:
        section = NamedSection(text, path.name, where)
        yield from check_sections(_AREA, [section], path.parent)


def first_entry(text: str) -> QnnLoraConfig | None:
    """What the first line says, None if it does not have two parts."""
    lines = text.removeprefix("\ufeff").splitlines()
    return parse_line(lines[0]) if lines else None


def _error(
    rule: str, message: str, shown: Path, line: int | None = None, hint: str | None = None
) -> Finding:
    return Finding(f"{_AREA}/{rule}", Severity.ERROR, message, Where(file=shown, line=line), hint)
