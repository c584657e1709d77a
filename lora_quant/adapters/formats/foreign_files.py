"""Files that are taken for weights by mistake: what they are, told by their first bytes.

A download that failed leaves a page or a pointer under the name of the weights.
"""

from __future__ import annotations

from pathlib import Path

from lora_quant.errors import AdapterError, Where

_POINTER = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# the version of the ONNX file format, then the next field of the model: a text, number or message
_ONNX_VERSION = 0x08
_ONNX_NEXT_FIELDS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})


def foreign_file(path: Path, head: bytes) -> AdapterError | None:
    """The error for a file that is known to hold no weights, from its first bytes; else None."""
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    if not head:
        message = "the file is empty"
        hint = "save or download the adapter again"
    elif head.startswith(_POINTER):
        message = "the file is a pointer of git-lfs, and the weights it stands for are not here"
        hint = "run `git lfs pull` in the repository, or download the file itself"
    elif text.startswith(_PAGES):
        message = "the file is a web page, such as a refused download leaves"
        hint = "download the file itself; its repository may ask for a login"
    elif _is_onnx(path, head):
        message = "the file is an ONNX graph, and an adapter's weights were expected"
        hint = "name the adapter's checkpoint here, and the graph as the base model"
    else:
        return None
    return AdapterError(
        f"{message}; expected safetensors, a zip archive of torch.save or GGUF",
        where=Where(file=path),
        hint=hint,
    )


def _is_onnx(path: Path, head: bytes) -> bool:
    return path.suffix.lower() == ".onnx" or (
        len(head) > 2 and head[0] == _ONNX_VERSION and head[2] in _ONNX_NEXT_FIELDS
    )
