"""Element types of tensors in files, as safetensors spells them, in NumPy's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import UnsupportedAdapterError, Where

NumberArray = NDArray[Any]

FLOAT_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NUMBER_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    **FLOAT_DTYPES,
    "BOOL": np.dtype("?"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}


def expect_float(dtype: str, where: Where) -> None:
    """Raise UnsupportedAdapterError for a type that a trained weight does not have."""
    if dtype not in FLOAT_DTYPES:
        raise UnsupportedAdapterError(
            f"the tensor is {dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
            where=where,
            hint="save the adapter's weights in float32, float16 or bfloat16",
        )


def number_dtype(dtype: str, where: Where) -> np.dtype[np.generic]:
    """The type of a tensor of numbers; UnsupportedAdapterError for fp8 and other special ones."""
    found = NUMBER_DTYPES.get(dtype)
    if found is None:
        raise UnsupportedAdapterError(
            f"the tensor is {dtype}, expected a whole number or a float", where=where
        )
    return found
