"""How many parts a protobuf message has, counted before it is parsed.

Two bytes are enough for an empty node, which takes a hundred bytes or more once it is parsed. So a
large file may hold many weights, whose bytes are passed over here, but not any number of parts.
"""

from __future__ import annotations

from typing import Any

_VARINT, _FIXED64, _BYTES, _GROUP, _FIXED32 = 0, 1, 2, 3, 5
_MOST_DEPTH = 100  # what protobuf accepts


def has_more_parts(data: bytes, descriptor: Any, most: int) -> bool:
    """Whether a message of a type holds more than `most` fields, those of inner messages included.

    Damaged data counts as far as it can be read: its parser will refuse it. Time is linear in the
    number of fields, of which at most `most` are looked at.
    """
    count = 0
    waiting: list[tuple[int, int, Any, int]] = [(0, len(data), descriptor, 0)]
    while waiting:
        at, end, kind, depth = waiting.pop()
        inner = {n: f.message_type for n, f in kind.fields_by_number.items() if f.message_type}
        while at < end:
            count += 1
            if count > most:
                return True
            key, at = _varint(data, at, end)
            wire = key & 7
            if wire == _VARINT:
                _, at = _varint(data, at, end)
            elif wire == _BYTES:
                length, at = _varint(data, at, end)
                if length > end - at:
                    break
                message = inner.get(key >> 3)
                if message is not None and length and depth < _MOST_DEPTH:
                    waiting.append((at, at + length, message, depth + 1))
                at += length
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            elif wire != _GROUP:  # no type of ONNX has groups; what is in one counts as its fields
                break
    return False


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends, `end` if it does not."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return value, end
