"""How a tensor is quantized, in the terms of QuantizeLinear and DequantizeLinear.

x = (q - zero_point) * scale
q = saturate(round(x / scale) + zero_point)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Grid:
    """Scale and zero point of one tensor.

    dtype: how q is stored, in ONNX spelling: int8, uint8, int16, uint16 or int32. scale: float32,
    `[1]` per tensor, `[channels]` along `axis`, or the tensor's shape with `axis` divided by
    `block_size`. zero_point: `dtype`, shape of `scale`. It is never of no axes: an adapter file of
    ONNX Runtime cannot hold such a tensor.
    """

    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer]
    axis: int | None = None
    block_size: int | None = None
