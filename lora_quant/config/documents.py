"""The one door for YAML and JSON.

Refused in both: duplicate keys, NaN and infinities, lone surrogates, nesting beyond a bound, files
beyond a size, text that is not UTF-8, empty documents; in YAML also tags, several documents and
aliases that expand beyond a bound. A refusal is a ConfigError with file, line, column and a hint;
a missing or unreadable file is an InputMissingError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_quant.config import json_documents, yaml_documents
from lora_quant.config.document_dump import dump_json, dump_yaml
from lora_quant.config.document_text import JSON_MAX_BYTES, YAML_MAX_BYTES, read_bytes
from lora_quant.config.located import LocatedDocument, path_text

__all__ = [
    "LocatedDocument",
    "dump_json",
    "dump_yaml",
    "parse_json",
    "parse_yaml",
    "path_text",
    "read_json",
    "read_json_located",
    "read_yaml",
    "read_yaml_located",
]


def parse_json(text: str | bytes, *, source: Path | None = None) -> Any:
    """The value of a JSON text; `source` is the file to name in an error."""
    return json_documents.parse(text, source=source)


def parse_yaml(text: str | bytes, *, source: Path | None = None) -> Any:
    """The value of a YAML text by the core schema of YAML 1.2."""
    return yaml_documents.parse_located(text, source=source).value


def read_json(path: Path, *, max_bytes: int = JSON_MAX_BYTES) -> Any:
    """The value of a JSON file of at most `max_bytes`."""
    return json_documents.parse(read_bytes(path, max_bytes=max_bytes), source=path)


def read_yaml(path: Path, *, max_bytes: int = YAML_MAX_BYTES) -> Any:
    """The value of a YAML file of at most `max_bytes`."""
    return read_yaml_located(path, max_bytes=max_bytes).value


def read_json_located(path: Path, *, max_bytes: int = YAML_MAX_BYTES) -> LocatedDocument:
    """A JSON file with the position of each part; for files of the size a person writes."""
    return json_documents.parse_located(read_bytes(path, max_bytes=max_bytes), source=path)


def read_yaml_located(path: Path, *, max_bytes: int = YAML_MAX_BYTES) -> LocatedDocument:
    """A YAML file with the position of each part."""
    return yaml_documents.parse_located(read_bytes(path, max_bytes=max_bytes), source=path)
