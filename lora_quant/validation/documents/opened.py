"""A YAML or JSON file that was read, with the positions of its parts when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_quant.config.documents import read_json, read_json_located, read_yaml_located
from lora_quant.config.located import LocatedDocument, path_text
from lora_quant.config.plain_values import PathParts
from lora_quant.config.regular_file import open_regular
from lora_quant.errors import ConfigError, Where

_SNIFFED_BYTES = 4096
YAML_SUFFIXES = (".yaml", ".yml")
JSON_SUFFIXES = (".json", ".encodings")


@dataclass(frozen=True, eq=False)
class OpenedDocument:
    """A document's value. `shown` is the path that findings name, which may differ from `path`.

    Positions cost a second scan and several times the memory of the text, so they are made only
    when there is something to report, and not at all for a JSON file above 16 MiB.
    """

    path: Path
    shown: Path
    value: Any
    positions: Callable[[], LocatedDocument]

    def places(self) -> Callable[[PathParts], Where]:
        """A function from a path inside the document to file, line, column and field."""
        located = self.positions()

        def where(path: PathParts) -> Where:
            return replace(located.where(path, field=path_text(path) or None), file=self.shown)

        return where


def open_document(path: Path, shown: Path | None = None) -> OpenedDocument:
    """Read a YAML or JSON file; ConfigError or InputMissingError as the readers raise them."""
    shown = shown or path
    if is_yaml(path):
        document = read_yaml_located(path)
        return OpenedDocument(path, shown, document.value, lambda: document)
    value = read_json(path)
    return OpenedDocument(path, shown, value, lambda: _locate_json(path, value))


def _locate_json(path: Path, value: Any) -> LocatedDocument:
    try:
        return read_json_located(path)
    except ConfigError:  # larger than what is scanned: findings go without line and column
        return LocatedDocument(value, source=path)


def is_yaml(path: Path) -> bool:
    """Whether the file is read as YAML: by its suffix, or else by its first character."""
    suffix = path.suffix.lower()
    if suffix in YAML_SUFFIXES or suffix in JSON_SUFFIXES:
        return suffix in YAML_SUFFIXES
    return not _head(path).lstrip().startswith((b"{", b"["))


def is_binary(path: Path) -> bool:
    """Whether the file begins like no text does; such a file is not read as a document."""
    return b"\0" in _head(path)


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_SNIFFED_BYTES).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""
