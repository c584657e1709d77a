"""Names that people give: a use case's name becomes a folder on every kind of file system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_NAME_BYTES = 255
"""The longest file name that common file systems take."""

_CONTROL = r"\x00-\x1f\x7f-\x9f"
_FORBIDDEN = re.compile(rf'[{_CONTROL}<>:"/\\|?*]')
_CONTROL_CHARACTER = re.compile(f"[{_CONTROL}]")
_RESERVED = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])"
    r" *(?:\.|\Z)",
    re.IGNORECASE | re.ASCII,
)

# The same rules as one pattern in the common subset of Python and ECMA 262; no flag may be set
# in a schema, so the reserved names spell out both cases.
FOLDER_NAME_PATTERN = (
    r"^(?!\.)"
    r"(?!(?:[Cc][Oo][Nn]|[Pp][Rr][Nn]|[Aa][Uu][Xx]|[Nn][Uu][Ll]|[Cc][Oo][Nn][Ii][Nn]\$"
    r"|[Cc][Oo][Nn][Oo][Uu][Tt]\$|(?:[Cc][Oo][Mm]|[Ll][Pp][Tt])[0-9\u00b9\u00b2\u00b3])"
    r" *(?:\.|(?![\s\S])))"
    rf'[^{_CONTROL}<>:"/\\|?*]*[^{_CONTROL}<>:"/\\|?*. ](?![\s\S])'
)

PLAIN_NAME_PATTERN = rf"^[^{_CONTROL}]+(?![\s\S])"


def folder_name_problem(name: str) -> str | None:
    """Why `name` cannot be a folder on Linux, macOS and Windows alike, or None if it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if name[-1] in ". ":
        return "ends with a dot or a space"
    found = _FORBIDDEN.search(name)
    if found:
        return f"holds the character {found.group()!r}"
    if _RESERVED.match(name):
        return "is reserved by Windows"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def folder_key(name: str) -> str:
    """Equal for names whose folders some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def clashes(names: Iterable[str]) -> list[tuple[int, str]]:
    """Index of each name that an earlier one already took as a folder, and that earlier name."""
    seen: dict[str, str] = {}
    result = []
    for index, name in enumerate(names):
        key = folder_key(name)
        if key in seen:
            result.append((index, seen[key]))
        else:
            seen[key] = name
    return result


def repeated(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Index of each name that occurs before, and the name."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        seen.add(name)


def plain_name_problem(name: str) -> str | None:
    """Why `name` cannot name an adapter, a tensor or a module, or None if it can."""
    if not name:
        return "is empty"
    found = _CONTROL_CHARACTER.search(name)
    return f"holds the control character {found.group()!r}" if found else None


def _checked(find_problem: Callable[[str], str | None], hint: str) -> AfterValidator:
    def check(name: str) -> str:
        reason = find_problem(name)
        if reason is not None:
            context = {"text": f"the name {name!r} {reason}", "hint": hint}
            raise PydanticCustomError("rule", "{text}", context)
        return name

    return AfterValidator(check)


FolderName = Annotated[
    str,
    _checked(
        folder_name_problem,
        "it becomes a folder: use letters, digits, '-', '_', and spaces or dots inside",
    ),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_NAME_BYTES,
            "pattern": FOLDER_NAME_PATTERN,
        }
    ),
]
"""A name that becomes a folder."""

PlainName = Annotated[
    str,
    _checked(plain_name_problem, "use printable characters"),
    WithJsonSchema({"type": "string", "minLength": 1, "pattern": PLAIN_NAME_PATTERN}),
]
"""A name that stays inside files."""
