"""Element types of tensors: ONNX's numbers, the names that records use, and numpy's types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

DTYPES: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.UINT8: np.dtype(np.uint8),
}
ELEMENTS: Mapping[str, int] = {dtype.name: element for element, dtype in DTYPES.items()}
DTYPE_OF: Mapping[str, np.dtype[Any]] = {dtype.name: dtype for dtype in DTYPES.values()}

# The floats that a linear node may compute in.
FLOAT_TYPES: Mapping[int, str] = {
    ELEMENTS[name]: name for name in ("float32", "float16", "bfloat16")
}


def type_name(element: int) -> str:
    """An ONNX element type in words; the number itself for one that is not known."""
    known = element in TensorProto.DataType.values()
    return TensorProto.DataType.Name(element).lower() if known else str(element)
