"""Tensors of a checkpoint, read and held to be finite."""

from __future__ import annotations

import numpy as np

from lora_quant.adapters.lowered import FloatArray
from lora_quant.adapters.safetensors_file import SafetensorsFile
from lora_quant.errors import AdapterError, Where


def read_finite(tensors: SafetensorsFile, name: str, module: str) -> FloatArray:
    """Read one tensor in its own dtype and shape; AdapterError if it holds NaN or infinity."""
    array = tensors.read(name)
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)
        first = tuple(int(i) for i in bad[0])
        raise AdapterError(
            f"{len(bad)} of {array.size} values are not finite; the first is {array[first]} at "
            f"{list(first)}",
            where=Where(file=tensors.path, module=module, tensor=name),
            hint="the training diverged or overflowed float16; save the adapter from a good step",
        )
    return array
