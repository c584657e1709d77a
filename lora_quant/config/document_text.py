"""Reading a file as text, with a bound on its size and in UTF-8 only."""

from __future__ import annotations

import codecs
import os
import unicodedata
from io import FileIO
from pathlib import Path

from lora_quant.config.missing_path import missing_hint
from lora_quant.config.regular_file import open_regular
from lora_quant.errors import ConfigError, InputMissingError, Where

MEBIBYTE = 1024 * 1024

JSON_MAX_BYTES = 1024 * MEBIBYTE
"""Encodings of a large model with per-channel grids reach several hundred MiB."""

_PIECE = 1 << 16

YAML_MAX_BYTES = 16 * MEBIBYTE
"""YAML is written by hand; its parser is slow, so the bound is tighter."""


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """The content of `path`.

    Raises InputMissingError if it is missing, a directory or unreadable, and ConfigError if it is
    larger than `max_bytes`. At most `max_bytes + 1` bytes are read, and no memory is taken for more
    than there is, so that a file that is large by its holes and a pipe without an end are refused.
    """
    try:
        with open_regular(path, handed_over=True) as stream:
            content = _read_most(stream, max_bytes)
    except FileNotFoundError:
        raise InputMissingError(
            "the file does not exist",
            where=Where(file=path),
            hint=missing_hint(
                path, "relative paths are taken from the folder of the file that names them"
            ),
        ) from None
    except IsADirectoryError:
        raise InputMissingError(
            "expected a file, got a directory",
            where=Where(file=path),
            hint="name the file inside the directory",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputMissingError(
            f"the file cannot be read: {reason}",
            where=Where(file=path),
            hint="check that it is a file and that its permissions allow reading",
        ) from error
    if content is None:
        raise ConfigError(
            f"the file is larger than the {max_bytes} bytes that are accepted here",
            where=Where(file=path),
            hint="check that this is the file that was meant",
        )
    return content


def _read_most(stream: FileIO, most: int) -> bytes | None:
    """The content of a file, None if it has more than `most` bytes."""
    size = os.fstat(stream.fileno()).st_size  # 0 for a pipe
    if size > most:
        return None
    parts: list[bytes] = []
    left = most + 1
    while left > 0 and (part := stream.read(min(left, max(size + 1, _PIECE)))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts) if left else None


def decode(text: str | bytes, *, source: Path | None) -> str:
    """`text` as a string without a byte order mark; ConfigError unless it is valid UTF-8."""
    if isinstance(text, bytes):
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            if is_utf_16(text[:_PIECE]):
                raise ConfigError(
                    "the text is UTF-16, expected UTF-8",
                    where=Where(file=source),
                    hint="save the file as UTF-8; Windows PowerShell 5 writes UTF-16 with >",
                ) from None
            byte = error.object[error.start]
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"the text is not UTF-8: byte 0x{byte:02x} at offset {error.start}",
                where=Where(file=source, line=line),
                hint="save the file as UTF-8",
            ) from None
    else:
        decoded = text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text holds a lone surrogate at offset {error.start}",
                where=Where(file=source, line=text.count("\n", 0, error.start) + 1),
                hint="such a character has no UTF-8 form; remove it",
            ) from None
    decoded = decoded.removeprefix("\ufeff")
    if not decoded or decoded.isspace():
        raise ConfigError(
            "the document is empty",
            where=Where(file=source),
            hint="an empty object is written {}, an empty list []",
        )
    return decoded


def is_utf_16(content: bytes) -> bool:
    """Whether bytes, or the start of a file, are text in UTF-16 with its byte order mark."""
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    try:
        # What is cut off in the middle of a character is not looked at.
        text = codecs.getincrementaldecoder("utf-16")().decode(content)
    except UnicodeDecodeError:
        return False
    return not any(unicodedata.category(c) == "Cc" and c not in "\t\r\n" for c in text)
