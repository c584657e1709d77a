"""Reading a file as text, with a bound on its size and in UTF-8 only."""

from __future__ import annotations

from pathlib import Path

from lora_quant.config.missing_path import missing_hint
from lora_quant.errors import ConfigError, InputMissingError, Where

MEBIBYTE = 1024 * 1024

JSON_MAX_BYTES = 1024 * MEBIBYTE
"""Encodings of a large model with per-channel grids reach several hundred MiB."""

# Where a shell puts the pipes that it hands over, as for <(command).
_HANDED_OVER = (("dev",), ("proc",))

YAML_MAX_BYTES = 16 * MEBIBYTE
"""YAML is written by hand; its parser is slow, so the bound is tighter."""


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """The content of `path`.

    Raises InputMissingError if it is missing, a directory or unreadable, and ConfigError if it is
    larger than `max_bytes`. At most `max_bytes + 1` bytes are read, so that a device or a pipe
    without an end is refused too.
    """
    _refuse_pipe(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(max_bytes + 1)
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
    if len(content) > max_bytes:
        raise ConfigError(
            f"the file is larger than the {max_bytes} bytes that are accepted here",
            where=Where(file=path),
            hint="check that this is the file that was meant",
        )
    return content


def _refuse_pipe(path: Path) -> None:
    if path.is_fifo() and path.parts[1:2] not in _HANDED_OVER:
        raise InputMissingError(
            "expected a file, got a pipe, which may have nobody at its other end",
            where=Where(file=path),
            hint="write the content to a file, and name that",
        )


def decode(text: str | bytes, *, source: Path | None) -> str:
    """`text` as a string without a byte order mark; ConfigError unless it is valid UTF-8."""
    if isinstance(text, bytes):
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
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
