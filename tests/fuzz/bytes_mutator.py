"""Damage that knows bytes only: flips, cuts, splices, repeats, and numbers that are too large.

Deterministic: the same data, donors and random state give the same result.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

MOST_BYTES = 1 << 20
"""No result is larger, so that the time of one input has a bound that can be stated."""

NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**40,
    10**9,
)
_TOKENS = (
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b"\r\n",
    b"\x1b[31m",
    b"../",
    b"..\\",
    b"CON",
    b"nan",
    b"inf",
    b"1e999",
    b"%s%n",
    b"*a",
    b"&a ",
    b"!!python/object/apply:os.system ['true']",
    b"<<: *a",
    b'"',
    b"[",
    b"{",
    b"---\n",
)

_Step = Callable[[bytearray, Sequence[bytes], Random], None]


def mutate_bytes(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """`data` after one to four steps of damage; `donors` are files to splice parts from."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        random.choice(_STEPS)(content, donors, random)
    return bytes(content[:MOST_BYTES])


def _span(content: bytearray, random: Random) -> slice:
    start = random.randrange(len(content) + 1)
    length = random.choice((1, 2, 4, 8, 16, 64, len(content)))
    return slice(start, start + random.randrange(length + 1))


def _flip(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _set(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    if content:
        content[random.randrange(len(content))] = random.randrange(256)


def _cut_out(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    del content[_span(content, random)]


def _truncate(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    del content[random.randrange(len(content) + 1) :]


def _insert(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(content) + 1)
    token = random.choice(_TOKENS) * random.choice((1, 1, 1, 2, 200))
    content[at:at] = token


def _repeat(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    part = _span(content, random)
    times = random.choice((1, 1, 2, 10, 100))
    content[part.stop : part.stop] = (content[part] * times)[:MOST_BYTES]


def _move(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    part = _span(content, random)
    moved = content[part]
    del content[part]
    at = random.randrange(len(content) + 1)
    content[at:at] = moved


def _splice(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    donor = bytearray(random.choice(donors)) if donors else content
    content[_span(content, random)] = donor[_span(donor, random)]


def _number(content: bytearray, donors: Sequence[bytes], random: Random) -> None:
    """A little-endian number in place of another, as lengths and offsets are stored."""
    width, form = random.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
    if len(content) < width:
        return
    at = random.randrange(len(content) - width + 1)
    if random.random() < 0.5:
        value = random.choice(NUMBERS)
    else:
        value = struct.unpack_from(form, content, at)[0] + random.choice((-8, -1, 1, 4, 8))
    struct.pack_into(form, content, at, value % (1 << 8 * width))


_STEPS: tuple[_Step, ...] = (
    _flip,
    _flip,
    _set,
    _cut_out,
    _truncate,
    _insert,
    _repeat,
    _move,
    _splice,
    _number,
    _number,
)
