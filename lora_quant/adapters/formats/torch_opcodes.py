"""The opcodes of a pickle that a file of tensors needs, taken apart with bounds.

An argument that leaves the data is an error before anything is made of it. An opcode that is not in
the tables is given with its name and no argument, to be refused: nothing after it is read.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Opcode(NamedTuple):
    """One step: its name as in `pickletools`, its argument, and the byte it begins at."""

    name: str
    argument: Any
    position: int


_BARE: Mapping[str, str] = {
    "(": "MARK",
    ")": "EMPTY_TUPLE",
    ".": "STOP",
    "N": "NONE",
    "Q": "BINPERSID",
    "R": "REDUCE",
    "]": "EMPTY_LIST",
    "a": "APPEND",
    "b": "BUILD",
    "e": "APPENDS",
    "s": "SETITEM",
    "t": "TUPLE",
    "u": "SETITEMS",
    "}": "EMPTY_DICT",
    "\x85": "TUPLE1",
    "\x86": "TUPLE2",
    "\x87": "TUPLE3",
    "\x88": "NEWTRUE",
    "\x89": "NEWFALSE",
    "\x93": "STACK_GLOBAL",
    "\x94": "MEMOIZE",
}
_FIXED: Mapping[str, tuple[str, struct.Struct]] = {
    "G": ("BINFLOAT", struct.Struct(">d")),
    "J": ("BININT", struct.Struct("<i")),
    "K": ("BININT1", struct.Struct("<B")),
    "M": ("BININT2", struct.Struct("<H")),
    "h": ("BINGET", struct.Struct("<B")),
    "j": ("LONG_BINGET", struct.Struct("<I")),
    "q": ("BINPUT", struct.Struct("<B")),
    "r": ("LONG_BINPUT", struct.Struct("<I")),
    "\x80": ("PROTO", struct.Struct("<B")),
    "\x95": ("FRAME", struct.Struct("<Q")),
}
_SIZED: Mapping[str, tuple[str, struct.Struct]] = {
    "X": ("BINUNICODE", struct.Struct("<I")),
    "\x8a": ("LONG1", struct.Struct("<B")),
    "\x8c": ("SHORT_BINUNICODE", struct.Struct("<B")),
}
_OTHERS: Mapping[str, str] = {known.code: known.name for known in pickletools.opcodes}
_LINES = 2
_MAX_LINE = 1000


def opcodes(data: bytes) -> Iterator[Opcode]:
    """The steps of a pickle up to its STOP; ValueError if the data ends before that."""
    at = 0
    while at < len(data):
        code, start = chr(data[at]), at
        at += 1
        if code in _BARE:
            yield Opcode(_BARE[code], None, start)
            if code == ".":
                return
        elif code in _FIXED:
            name, form = _FIXED[code]
            yield Opcode(name, form.unpack(_take(data, at, form.size))[0], start)
            at += form.size
        elif code in _SIZED:
            name, form = _SIZED[code]
            size = form.unpack(_take(data, at, form.size))[0]
            at += form.size
            value = _take(data, at, size)
            yield Opcode(name, _number(value) if name == "LONG1" else value.decode(), start)
            at += size
        elif code == "c":
            lines = data[at : at + _LINES * _MAX_LINE].split(b"\n", _LINES)
            if len(lines) <= _LINES:
                raise ValueError(f"no name ends within {_LINES * _MAX_LINE} bytes")
            yield Opcode("GLOBAL", (lines[0].decode(), lines[1].decode()), start)
            at += len(lines[0]) + len(lines[1]) + _LINES
        else:
            if code not in _OTHERS:
                raise ValueError(f"{data[start]:#x} is no opcode")
            yield Opcode(_OTHERS[code], None, start)
            return
    raise ValueError("the end mark is missing")


def _take(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise ValueError(f"{size} bytes are claimed, {len(data) - at} are left")
    return data[at : at + size]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)
