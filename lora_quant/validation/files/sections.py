"""Binary sections that a device's configuration names: filled in, there, and each named once.

What only the device compiler knows is a placeholder in the files of a pack. A file that is checked
by itself is about to be used: there a placeholder is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from lora_quant.config.placeholders import is_placeholder
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity

_FILL_IN = (
    "run `lora-quant fill-in`, or copy the file to where the sections lie, and replace every "
    "<FILL IN: ...> by {}; files of a pack stay as they were built"
)
GRAPH_HINT = _FILL_IN.format(
    "the name that the graph has in the context binary (qnn-context-binary-utility prints it)"
)
SECTION_HINT = _FILL_IN.format(
    "the path of the section that qnn-context-binary-generator wrote for this use case "
    "(<graph>_<use case>.bin)"
)


@dataclass(frozen=True)
class NamedSection:
    """A section's path as a file has it, whose it is, and where it stands."""

    text: str
    owner: str
    where: Where


def open_entry(area: str, what: str, where: Where, hint: str) -> Finding:
    """The error for an entry that nobody has filled in."""
    return Finding(
        f"{area}/not-filled-in", Severity.ERROR, f"not filled in yet: {what}", where, hint
    )


def check_sections(area: str, sections: Iterable[NamedSection], folder: Path) -> Iterator[Finding]:
    """Sections that are open, missing below `folder`, or named for two owners.

    Absolute paths are those of the device, and are not looked for.
    """
    owners: dict[str, str] = {}
    waiting = []
    for section in sections:
        text, where = section.text, section.where
        if is_placeholder(text):
            waiting.append(section)
            continue
        if not text.strip():
            yield Finding(
                f"{area}/section-empty",
                Severity.ERROR,
                f"the path of a section of {section.owner!r} is empty: it names no file",
                where,
                SECTION_HINT,
            )
            continue
        first = owners.setdefault(text, section.owner)
        if first != section.owner:
            yield Finding(
                f"{area}/section-shared",
                Severity.ERROR,
                f"{first!r} and {section.owner!r} have the same section {text!r}",
                where,
                "every use case has weights of its own: name the section that was made for it",
            )
        yield from _check_path(area, text, where, folder)
    if waiting:
        names = list(dict.fromkeys(section.owner for section in waiting))
        what = f"the section{'s' * (len(names) != 1)} of {some(names)}"
        yield open_entry(area, what, waiting[0].where, SECTION_HINT)


def _check_path(area: str, text: str, where: Where, folder: Path) -> Iterator[Finding]:
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return
    if "\\" in text:
        yield Finding(
            f"{area}/section-backslash",
            Severity.WARNING,
            f"the path {text!r} has backslashes, which separate folders on Windows alone",
            where,
            "use forward slashes",
        )
        return
    if not _is_file(folder / text):
        yield Finding(
            f"{area}/section-missing",
            Severity.ERROR,
            f"there is no file {text!r} beside this one",
            where,
            "put the section there, or write the absolute path that it has on the device: from "
            "where a relative path is taken depends on the program that reads it",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long, or holds a zero byte
        return False
