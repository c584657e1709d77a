"""What readers of files are tried with: arbitrary bit patterns, and damage."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def float_arrays(draw: st.DrawFn, max_dims: int = 4) -> np.ndarray[Any, Any]:
    """Arbitrary bit patterns, NaN payloads included, of every dtype that is read."""
    dtype = np.dtype(draw(st.sampled_from(FLOATS)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=4))
    size = dtype.itemsize * int(np.prod(shape, dtype=int))
    data = draw(st.binary(min_size=size, max_size=size))
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """A file with up to four short runs of bytes replaced, left out or put in."""
    result = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(result) - 1))
        result[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    return bytes(result)
