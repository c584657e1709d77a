"""One list of tensors by itself: text, UTF-8, a name a line, sorted, each name once.

One finding for each rule, at the first line that breaks it: a list that was saved with line ends
of Windows breaks a rule at every line.
"""

from __future__ import annotations

import codecs
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from lora_quant.config.document_text import read_bytes
from lora_quant.config.tensor_list import MAX_BYTES, MAX_LINES
from lora_quant.errors import ConfigError, LoraQuantError, Where, cut
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.lists import (
    BYTE_ORDER_MARK,
    CONTROL_CHARACTER,
    EMPTY_LINE,
    LINE_ENDS,
    NOT_SORTED,
    NOT_UTF_8,
    TOO_LARGE,
    TWICE,
    WHITE_SPACE,
)
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.rule import Rule

# Control characters, those that are never seen, and separators of lines other than the line feed.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})

WEIGHT_NAMES = "lora_tensor_names.txt"
"""The converter's list of weights stands in the order of the graph; only updatable lists sort."""


def check_tensor_list(path: Path) -> tuple[Finding, ...]:
    """Findings `list/...` of one file; bad content never raises."""
    where = Where(file=path)
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES)
    except ConfigError as error:
        return (TOO_LARGE.finding(error.message, where),)
    except LoraQuantError as error:
        return (finding_of(error, shown=path),)
    if data.count(b"\n") > MAX_LINES:
        return (TOO_LARGE.finding(f"the file has more than {MAX_LINES:,} lines", where),)
    found: list[Finding] = []
    if data.startswith(codecs.BOM_UTF8):
        message = "the file begins with a byte order mark"
        found.append(BYTE_ORDER_MARK.finding(message, Where(file=path, line=1, column=1)))
        data = data.removeprefix(codecs.BOM_UTF8)
    first: dict[Rule, tuple[int, str]] = {}
    counts: dict[Rule, int] = {}
    any_order = path.name.lower().endswith(WEIGHT_NAMES)
    for rule, line, what in _broken(data):
        if rule is NOT_SORTED and any_order:
            continue
        if rule is NOT_UTF_8:
            return (rule.finding(what, Where(file=path, line=line)),)
        first.setdefault(rule, (line, what))
        counts[rule] = counts.get(rule, 0) + 1
    for rule, (line, what) in first.items():
        more = f" (and {counts[rule] - 1} more lines)" if counts[rule] > 1 else ""
        found.append(rule.finding(f"{what}{more}", Where(file=path, line=line)))
    return tuple(sorted(found, key=lambda finding: finding.where.line or 0))


def _broken(data: bytes) -> Iterator[tuple[Rule, int, str]]:
    """What is wrong with a line: the rule, its number, and how it is broken."""
    seen: dict[str, int] = {}
    before = ""
    for number, raw in enumerate(io.BytesIO(data), start=1):
        try:
            line = raw.removesuffix(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            value = raw[error.start]
            told = f"byte {error.start + 1} of the line is 0x{value:02x}, which is not UTF-8"
            yield NOT_UTF_8, number, f"{told}: {error.reason}"
            return
        if line.endswith("\r"):
            line = line[:-1]
            yield LINE_ENDS, number, "the line ends with a carriage return and a line feed"
        name = line.strip()
        if not name:
            yield EMPTY_LINE, number, "the line is empty"
            continue
        if not name.isprintable():
            unseen = sorted({f"U+{ord(c):04X}" for c in name if unicodedata.category(c) in _UNSEEN})
            if unseen:
                yield CONTROL_CHARACTER, number, f"{_short(name)} holds {', '.join(unseen[:5])}"
        if name != line:
            yield WHITE_SPACE, number, f"{_short(name)} has white space around it"
        first = seen.setdefault(name, number)
        if first != number:
            yield TWICE, number, f"{_short(name)} is in line {first} already"
        elif name < before:
            yield NOT_SORTED, number, f"{_short(name)} follows {_short(before)}"
        before = name


def _short(name: str) -> str:
    return repr(cut(name, most=100))
