"""Tensors of a checkpoint, read and held to be finite."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError, Where

# NumPy converts every half to float32 to look at it; its exponent bits tell as much.
_EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}


def all_finite(values: NDArray[np.generic]) -> bool:
    """Whether no value is NaN or infinite; `values` must be contiguous."""
    exponent = _EXPONENTS.get(values.dtype)
    if exponent is None:
        return bool(np.isfinite(values).all())
    bits = values.view(np.uint16) & np.uint16(exponent)
    return bool(bits.max(initial=0) != exponent)


def read_finite(tensors: TensorSource, name: str, module: str) -> FloatArray:
    """Read one tensor in its own dtype and shape; AdapterError if it holds NaN or infinity."""
    array = tensors.read(name)
    if not all_finite(array):
        bad = np.argwhere(~np.isfinite(array))
        first = tuple(int(i) for i in bad[0])
        raise AdapterError(
            f"{len(bad)} of {array.size} values are not finite; the first is {array[first]} at "
            f"{list(first)}",
            where=Where(file=tensors.path, module=module, tensor=name),
            hint="the training diverged or overflowed float16; save the adapter from a good step",
        )
    return array
