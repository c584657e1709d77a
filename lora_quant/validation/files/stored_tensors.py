"""The values of a weights file, walked once: which are NaN or Inf, which tensors are all zero.

A safetensors file is read in chunks; of other formats one tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.adapters.files.finite import all_finite
from lora_quant.adapters.files.opened import opened, read_bytes
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.errors import Where

FLOATS: Final = frozenset(FLOAT_DTYPES)
"""Dtypes of trained weights, as safetensors spells them; no other dtype is looked into."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredValues:
    """What the values of one float tensor are. not_finite: how many are NaN or Inf."""

    name: str
    not_finite: int
    all_zero: bool


def stored_values(tensors: TensorSource) -> Iterator[StoredValues]:
    """Every float tensor of a file, in its order; raises what the file's reader raises."""
    for name in tensors.names:
        if tensors.info(name).dtype not in FLOATS:
            continue
        not_finite, all_zero = 0, True
        for chunk in _chunks(tensors, name):
            if not all_finite(chunk):
                not_finite += int(np.count_nonzero(~np.isfinite(chunk)))
            all_zero = all_zero and not chunk.any()
        yield StoredValues(name, not_finite, all_zero)


def _chunks(tensors: TensorSource, name: str) -> Iterator[NDArray[Any]]:
    if not isinstance(tensors, SafetensorsFile):
        yield tensors.read(name).reshape(-1)
        return
    info, where = tensors.info(name), Where(file=tensors.path, tensor=name)
    with opened(tensors.path) as file:
        file.seek(info.offset)
        for done in range(0, info.size, _CHUNK_BYTES):
            data = read_bytes(file, min(_CHUNK_BYTES, info.size - done), where)
            yield data.view(FLOAT_DTYPES[info.dtype])
