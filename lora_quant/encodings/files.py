"""Reading and writing encodings files of any dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from lora_quant.config.documents import parse_json, read_json
from lora_quant.config.whole_files import write_file
from lora_quant.encodings import aimet_0_6_1, aimet_1_0_0, aimet_2_0_0, fragment
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import describe
from lora_quant.encodings.sections import ACTIVATIONS, PARAMS
from lora_quant.errors import EncodingsError, Where


@dataclass(frozen=True)
class _Dialect:
    read: Callable[[Mapping[str, Any]], EncodingFile]
    text: Callable[[EncodingFile], Iterator[str]]


_DIALECTS: dict[str | None, _Dialect] = {
    version: _Dialect(module.read, module.text)
    for module in (aimet_0_6_1, aimet_1_0_0, aimet_2_0_0, fragment)
    for version in module.VERSIONS
}
VERSIONS = tuple(version for version in _DIALECTS if version is not None)
"""The versions that can be read and written."""


def read_encodings(path: Path) -> EncodingFile:
    """The content of an encodings file.

    Raises InputMissingError if it cannot be read, ConfigError if it is not the JSON that is
    accepted (UTF-8, no repeated keys, no NaN, bounded depth and size), and EncodingsError with
    tensor and path inside the document if an entry is not valid.
    """
    return _read(read_json(path), path)


def parse_encodings(text: str | bytes, *, source: Path | None = None) -> EncodingFile:
    """The content of an encodings document given as text; `source` is named in errors."""
    return _read(parse_json(text, source=source), source)


def encodings_of(document: Any, *, source: Path | None = None) -> EncodingFile:
    """The content of an encodings document that was parsed already."""
    return _read(document, source)


def encodings_text(file: EncodingFile) -> Iterator[str]:
    """The text of `file` in its own version, piece by piece, ending with a line break.

    Entries keep the order of `file`. Raises EncodingsError, possibly after the first pieces, if
    the version cannot express an encoding.
    """
    if file.version not in _DIALECTS:
        raise _unknown_version(file.version)
    return _DIALECTS[file.version].text(file)


def write_encodings(file: EncodingFile, target: Path | TextIO) -> None:
    """Write `file` in its own version to a path (UTF-8, LF) or to an open text stream.

    The same content gives the same bytes. A path appears whole or not at all, and a file that is
    there is replaced; PackError if it cannot be written.
    """
    if not isinstance(target, Path):
        target.writelines(encodings_text(file))
        return
    try:
        write_file(
            target,
            lambda out: out.writelines(piece.encode() for piece in encodings_text(file)),
            force=True,
        )
    except EncodingsError as error:
        raise _in_file(error, target) from None


def _read(document: Any, source: Path | None) -> EncodingFile:
    try:
        if not isinstance(document, Mapping):
            raise EncodingsError(  # noqa: TRY301  (gets the file like the errors of the dialects)
                f"expected an object, got {describe(document)}"
            )
        version = _version_of(document)
        return _DIALECTS[version].read({**document, "version": version} if version else document)
    except EncodingsError as error:
        raise _in_file(error, source) from None


def _in_file(error: EncodingsError, path: Path | None) -> EncodingsError:
    return EncodingsError(error.message, where=replace(error.where, file=path), hint=error.hint)


def _version_of(document: Mapping[str, Any]) -> str | None:
    """The version of a document; None for a fragment.

    Without a version, sections of the 0.x layout are 0.4.0 by AIMET's specification; the lists of
    1.0.0 always come with one.
    """
    if "version" in document and not isinstance(document["version"], Mapping):
        version = document["version"]
        if not isinstance(version, str) or version not in _DIALECTS:
            raise _unknown_version(version)
        return version
    sections = [document[key] for key in (ACTIVATIONS, PARAMS) if key in document]
    if not sections:
        return None
    if all(isinstance(section, Mapping) for section in sections):
        return "0.4.0"
    raise EncodingsError(
        "the file has no version",
        where=Where(field="version"),
        hint='add "version": "1.0.0" if that is the layout',
    )


def _unknown_version(version: Any) -> EncodingsError:
    return EncodingsError(
        f"encodings version {version!r} is not known",
        where=Where(field="version"),
        hint=f"known: {', '.join(VERSIONS)}, or no version for a fragment of LoRA tensors",
    )
