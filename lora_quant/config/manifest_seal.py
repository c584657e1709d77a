"""The seal of `pack.json`: the SHA-256 of its own bytes, with zeros where the seal itself stands.

    "manifest_sha256": "000...0"  ->  SHA-256 of the whole text  ->  "manifest_sha256": "5e1f..."

The manifest covers every other file of a pack; the seal covers the manifest, spaces and line ends
included.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from lora_quant.errors import ConfigError

MANIFEST_FILE: Final = "pack.json"
SEAL_FIELD: Final = "manifest_sha256"
UNSEALED: Final = "0" * 64
"""What stands in the field until the text is sealed."""

# Between quotes without a backslash and before a colon, the name can only be a key.
_SEAL = re.compile(rb'("manifest_sha256"\s*:\s*")([0-9a-f]{64})"')


def seal_manifest(text: str) -> str:
    """The text with the seal that belongs to it, whatever stands in the field now.

    Raises ConfigError unless the field, with 64 hexadecimal digits, is there exactly once.
    """
    content = text.encode()
    found = _SEAL.findall(content)
    if len(found) != 1:
        raise ConfigError(
            f"the manifest has the field {SEAL_FIELD!r} {len(found)} times, expected once",
            hint="a seal is 64 digits from 0 to f",
        )
    digest = _digest(content)
    return _SEAL.sub(rb"\g<1>" + digest.encode() + b'"', content).decode()


def is_sealed(content: bytes) -> bool:
    """Whether these bytes are the ones that were sealed."""
    found = _SEAL.findall(content)
    return len(found) == 1 and found[0][1].decode() == _digest(content)


def _digest(content: bytes) -> str:
    zeros = rb"\g<1>" + UNSEALED.encode() + b'"'
    return hashlib.sha256(_SEAL.sub(zeros, content)).hexdigest()
