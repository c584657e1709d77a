"""What AIMET's LoRA export writes per adapter: a bare object name -> 1.0.0 entry.

    {"q.lora_A.weight": {"bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", ...}}

There is no version and no other member; it holds the tensors of the branches only and is laid over
the encodings of the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import JsonEntry, UnknownKeys
from lora_quant.encodings.json_text import document_text
from lora_quant.errors import EncodingsError

VERSION = None
VERSIONS = (VERSION,)


def read(document: Mapping[str, Any]) -> EncodingFile:
    """The content of a parsed document; EncodingsError with tensor and path if it is malformed."""
    unknown = UnknownKeys()
    encodings: dict[str, Encoding] = {}
    for name, value in document.items():
        entry = JsonEntry.of(value, tensor=name, path=name)
        if entry.members.get("name", name) != name:
            entry.fail(f"the entry under {name!r} names another tensor", key="name")
        encodings[name] = aimet_1_0_0.read_entry(entry, unknown)
    return EncodingFile(VERSION, encodings, findings=unknown.findings())


def write(file: EncodingFile) -> dict[str, Any]:
    """The document of `file` as JSON values."""
    document: dict[str, Any] = json.loads("".join(text(file)))
    return document


def text(file: EncodingFile) -> Iterator[str]:
    """The document of `file`, piece by piece; EncodingsError if there is a header to lose."""
    if file.header:
        raise EncodingsError(
            f"a fragment has no place for {', '.join(map(repr, file.header))}",
            hint="write version 1.0.0",
        )
    return document_text(
        (name, aimet_1_0_0.entry_text(encoding, name=None))
        for name, encoding in file.encodings.items()
    )
