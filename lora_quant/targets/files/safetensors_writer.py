"""Writing a safetensors file tensor by tensor, so that no use case is ever whole in memory.

Header: 8 bytes little-endian length, then JSON padded with spaces to a multiple of 8, tensors in
the order of their data. The same tensors give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.records import TensorRecord

_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


class ByteSink(Protocol):
    """Anything with a `write`."""

    def write(self, data: bytes | memoryview) -> object:
        """Take the next bytes."""


def write_safetensors(
    sink: ByteSink,
    records: Sequence[TensorRecord],
    tensors: Iterable[tuple[str, NDArray[np.generic]]],
) -> None:
    """Write the header for `records`, then each tensor as it comes, in the same order.

    Raises ValueError if a tensor is not the one that the header announced (a defect of the caller).
    """
    header: dict[str, object] = {}
    offset = 0
    for record in records:
        code, width = _DTYPES[record.dtype]
        end = offset + math.prod(record.shape) * width
        header[record.name] = {
            "dtype": code,
            "shape": list(record.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little"))
    sink.write(text)
    for record, (name, values) in zip(records, tensors, strict=True):
        if name != record.name or values.shape != record.shape or values.dtype != record.dtype:
            raise ValueError(
                f"expected {record}, got {name!r} of shape {values.shape} and {values.dtype}"
            )
        # bfloat16 has no buffer of its own: it goes out as bytes.
        sink.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
