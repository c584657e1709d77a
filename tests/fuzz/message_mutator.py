"""Damage that knows protobuf: fields lost, repeated, nested and with other numbers.

A message is taken apart without its schema: a length-delimited field whose bytes are a message by
themselves counts as one. What is put together again has the right lengths, so that the damage
reaches the code behind the parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.bytes_mutator import MOST_BYTES, NUMBERS, mutate_bytes
from tests.fuzz.tree_mutator import NAMES

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_DEPTH = 12
Field = list[Any]  # number, wire type, value: int, bytes or a list of fields


def mutate_message(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """`data` with one to three fields changed."""
    fields = _parse(data, 0)
    if fields is None:
        return mutate_bytes(data, donors, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        _damage(fields, random)
    return _text(fields)[:MOST_BYTES]


def varint(value: int) -> bytes:
    """A number of at most 64 bits in protobuf's base 128."""
    value %= 1 << 64
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes(result) + bytes([value])


def delimited(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | _BYTES) + varint(len(content)) + content


def _parse(data: bytes, depth: int) -> list[Field] | None:
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            key, at = _read_varint(data, at)
            number, wire = key >> 3, key & 7
            if number == 0:
                return None
            if wire == _VARINT:
                value, at = _read_varint(data, at)
                fields.append([number, wire, value])
            elif wire == _BYTES:
                length, at = _read_varint(data, at)
                part = data[at : at + length]
                if len(part) != length:
                    return None
                at += length
                inner = _parse(part, depth + 1) if part and depth < _MOST_DEPTH else None
                fields.append([number, wire, part if inner is None else inner])
            elif wire in (_FIXED64, _FIXED32):
                width = 8 if wire == _FIXED64 else 4
                part = data[at : at + width]
                if len(part) != width:
                    return None
                at += width
                fields.append([number, wire, part])
            else:
                return None
    except IndexError:
        return None
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _text(fields: list[Field]) -> bytes:
    result = bytearray()
    for number, wire, value in fields:
        if wire == _VARINT:
            result += varint(number << 3) + varint(value)
        elif wire == _BYTES:
            result += delimited(number, _text(value) if isinstance(value, list) else value)
        else:
            result += varint(number << 3 | wire) + value
    return bytes(result)


def _damage(fields: list[Field], random: Random) -> None:
    owner = fields
    while owner and random.random() < 0.8:
        inner = [f[2] for f in owner if isinstance(f[2], list) and f[2]]
        if not inner:
            break
        owner = random.choice(inner)
    if not owner:
        return
    at = random.randrange(len(owner))
    number, wire, value = owner[at]
    step = random.randrange(9)
    if step == 0:
        del owner[at]
    elif step == 1:
        owner.insert(random.randrange(len(owner) + 1), [number, wire, value])
    elif step == 2:
        owner[at] = [random.randrange(1, 30), wire, value]
    elif step == 3 and wire == _BYTES:
        owner[at] = [number, wire, random.choice(NAMES).encode()]
    elif step == 4 and isinstance(value, bytes):
        owner[at] = [number, wire, value[: random.randrange(len(value) + 1)]]
        if wire != _BYTES:
            owner[at] = [number, _VARINT, random.choice(NUMBERS)]
    elif step == 5:
        content = _text(value) if isinstance(value, list) else b"x"
        for _ in range(random.choice((2, 20, 120))):
            content = delimited(number, content)
        owner[at] = [number, _BYTES, content[: MOST_BYTES // 2]]
    elif step == 6:
        random.shuffle(owner)
    elif step == 7:
        owner[at:at] = [[number, wire, value]] * random.choice((2, 50))
    else:
        owner[at] = [number, _VARINT, random.choice((*NUMBERS, -1, 3, 4, 5, 6, 7, 8, 10, 11, 16))]
