"""How an ONNX Runtime adapter is told from other files: by its name, or by its first bytes."""

from __future__ import annotations

from typing import Final

ADAPTER_SUFFIX: Final = ".onnx_adapter"
MAGIC: Final = b"TORT"
"""Bytes 4 to 8 of such a file."""
