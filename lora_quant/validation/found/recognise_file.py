"""Telling from its first bytes, or else its name, what a file is that is no YAML or JSON document.

GGUF...                        ->  weights
<length>{"__metadata__": ...   ->  weights
a/MatMul\\nb/MatMul             ->  list of tensors
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lora_quant.config.regular_file import open_regular
from lora_quant.validation.files.adapter_signs import ADAPTER_SUFFIX, MAGIC
from lora_quant.validation.files.lora_config_check import TEXT_NAME, is_lora_config_text
from lora_quant.validation.kinds import Kind

LIST_NAMES: Final = ("quant_updatable_tensors.txt", "lora_tensor_names.txt")
"""How names of lists of tensors end."""

HEAD_BYTES: Final = 4096

_BY_SUFFIX: Final = {
    ADAPTER_SUFFIX: Kind.ADAPTER_FILE,
    ".safetensors": Kind.WEIGHTS,
    ".gguf": Kind.WEIGHTS,
    ".onnx": Kind.GRAPH,
}
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_MOST_HEADER_BYTES: Final = 1 << 32
# A ModelProto: its version (field 1, a small number), then another of its fields.
_MODEL = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2]")
_TENSOR_NAME = re.compile(r"[^\s\"'{}\[\];,#=]+")


def read_head(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, which its reader will say."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return b""


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file stands for content that Git LFS has not fetched."""
    return head.startswith(_LFS)


def recognise_file(path: Path, head: bytes, size: int) -> Kind | None:
    """The kind of a file; None for what may be a document, and for what nobody knows."""
    suffix = path.suffix.lower()
    name = path.name.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if name.endswith(LIST_NAMES):
        return Kind.TENSOR_LIST
    if name.endswith(TEXT_NAME):
        return Kind.QNN_LORA_CONFIG
    if head[4:8] == MAGIC:
        return Kind.ADAPTER_FILE
    if head.startswith(b"GGUF") or _is_safetensors(head, size):
        return Kind.WEIGHTS
    if b"\0" in head:
        return Kind.GRAPH if _MODEL.match(head) else None
    if is_lora_config_text(path):
        return Kind.QNN_LORA_CONFIG
    return Kind.TENSOR_LIST if suffix in ("", ".txt") and _is_list(head) else None


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length < _MOST_HEADER_BYTES and length + 8 <= size


def _is_list(head: bytes) -> bool:
    """Whether every line is one name, and most of them have parts as names of tensors do."""
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "ignore")
    lines = text.splitlines()
    if len(head) == HEAD_BYTES:
        lines = lines[:-1]
    if not lines or not all(_TENSOR_NAME.fullmatch(line) for line in lines):
        return False
    return 2 * sum("/" in line or "." in line for line in lines) > len(lines)
