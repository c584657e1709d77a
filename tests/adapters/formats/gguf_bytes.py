"""GGUF files written by hand, so that each part can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.float64): 28}
TYPES |= {np.dtype(ml_dtypes.bfloat16): 30}
ADAPTER: Mapping[str, Any] = {
    "general.architecture": "qwen2",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(key: str, value: Any) -> bytes:
    """A text, a whole number (u32), a float (f32) or bytes that already have their type."""
    if isinstance(value, bytes):
        return text(key) + value
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    kind, form = (4, "<I") if isinstance(value, int) else (6, "<f")
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


def record(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's entry; `shape` in NumPy's order."""
    head = text(name) + struct.pack("<I", len(shape))
    return (
        head + struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, offset)
    )


def assemble(
    fields: Sequence[bytes],
    records: Sequence[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(records), len(fields))
    head += b"".join(fields) + b"".join(records)
    return head + bytes(-len(head) % alignment) + data


def write(
    path: Path, arrays: Mapping[str, NDArray[Any]], *, version: int = 3, **fields: Any
) -> Path:
    """An adapter; `fields` replace or add to those of ADAPTER (dots as two underscores)."""
    all_fields = {**ADAPTER, **{key.replace("__", "."): v for key, v in fields.items()}}
    alignment = all_fields.get("general.alignment", 32)
    records, data = [], b""
    for name, array in arrays.items():
        records.append(record(name, array.shape, TYPES[array.dtype], len(data)))
        data += array.tobytes()
        data += bytes(-len(data) % alignment)
    made = [field(key, value) for key, value in all_fields.items() if value is not None]
    path.write_bytes(assemble(made, records, data, version=version, alignment=alignment))
    return path
