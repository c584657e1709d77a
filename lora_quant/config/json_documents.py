"""JSON without duplicate keys, NaN, infinities, lone surrogates and bottomless nesting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lora_quant.config.document_text import decode
from lora_quant.config.located import LocatedDocument, Position, path_text
from lora_quant.config.plain_values import PathParts, find_fault, too_deep
from lora_quant.errors import ConfigError, Where, short

# A repeated group would take memory for every character of a text.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


class _RepeatedKeyError(Exception):
    pass


class _NotFiniteError(Exception):
    pass


def parse(text: str | bytes, *, source: Path | None) -> Any:
    """The value of a JSON text; ConfigError with line and column if it is refused."""
    text = decode(text, source=source)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"the text is not JSON: {error.msg}",
            where=Where(file=source, line=error.lineno, column=error.colno),
            hint="JSON has no comments, no trailing commas and only double quotes",
        ) from None
    except _RepeatedKeyError:
        _raise_repeated_key(text, source)
    except _NotFiniteError as error:
        raise ConfigError(
            f"{error.args[0]} is not accepted",
            where=_where_constant(text, error.args[0], source),
            hint="write a finite number, or null if there is none",
        ) from None
    except RecursionError:
        raise ConfigError(
            f"the document is {too_deep()}", where=Where(file=source), hint="flatten it"
        ) from None
    except ValueError as error:  # an integer longer than Python converts
        raise ConfigError(
            f"a number cannot be read: {error}",
            where=Where(file=source),
            hint="write it as a float",
        ) from None
    fault = find_fault(value)
    if fault is not None:
        line, column = _position(text, fault.path)
        field = path_text(fault.path) or None
        raise ConfigError(
            f"the document is not accepted: {fault.problem}",
            where=Where(file=source, line=line, column=column, field=field),
            hint="JSON here holds finite numbers, UTF-8 text, lists and objects of bounded depth",
        )
    return value


def parse_located(text: str | bytes, *, source: Path | None) -> LocatedDocument:
    """Like `parse`, with positions; meant for small files, as it scans the text twice."""
    text = decode(text, source=source)
    value = parse(text, source=source)
    return LocatedDocument(value, dict(_scan(text)), source)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RepeatedKeyError
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise _NotFiniteError(name)


def _raise_repeated_key(text: str, source: Path | None) -> NoReturn:
    # Depth by depth, the object that is open there: keys of all objects would take more memory
    # than the document.
    opened: dict[int, tuple[PathParts, dict[str | int, Position]]] = {}
    for path, position in _scan(text):
        if not path:
            continue
        around, seen = opened.get(len(path), ((), {}))
        if around != path[:-1]:
            seen = {}
        opened[len(path)] = (path[:-1], seen)
        if path[-1] in seen:
            first = seen[path[-1]][0]
            raise ConfigError(
                f"the key {short(path[-1])} appears twice in one object, first on line {first}",
                where=Where(
                    file=source, line=position[0], column=position[1], field=path_text(path)
                ),
                hint="remove or rename one of them",
            )
        seen[path[-1]] = position
    raise AssertionError("the decoder saw a repeated key that the scan does not see")


def _position(text: str, wanted: PathParts) -> Position:
    """Where the part at a path begins, or the nearest part around it."""
    depth, found = -1, (1, 1)
    for path, position in _scan(text):
        if depth < len(path) <= len(wanted) and path == wanted[: len(path)]:
            depth, found = len(path), position
            if depth == len(wanted):
                break
    return found


def _where_constant(text: str, name: str, source: Path | None) -> Where:
    line = 1
    start = 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", start, token.start())
        start = token.start()
        if token.group() == name:
            return Where(file=source, line=line, column=start - text.rfind("\n", 0, start))
    return Where(file=source)


def _scan(text: str) -> Iterator[tuple[PathParts, Position]]:
    """Path and position of every part of a text whose grammar the decoder has accepted so far.

    Indices count up on commas; a repeated key yields the same path twice.
    """
    path: list[str | int] = []
    in_list: list[bool] = []
    expects_key = False
    line, line_start, last = 1, 0, 0
    for token in _TOKEN.finditer(text):
        start, mark = token.start(), token.group()
        newlines = text.count("\n", last, start)
        if newlines:
            line += newlines
            line_start = text.rfind("\n", last, start) + 1
        last = start
        position = (line, start - line_start + 1)
        if mark in ("}", "]"):
            in_list.pop()
            path.pop()
            expects_key = False
        elif mark == ",":
            if in_list[-1]:
                path[-1] = int(path[-1]) + 1
            else:
                expects_key = True
        elif mark == ":":
            expects_key = False
        elif expects_key:
            path[-1] = json.loads(mark)
            yield tuple(path), position
        else:
            if not path or in_list[-1]:
                yield tuple(path), position
            if mark in ("{", "["):
                in_list.append(mark == "[")
                path.append(0)
                expects_key = mark == "{"
