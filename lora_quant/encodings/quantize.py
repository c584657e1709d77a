"""Real values to steps of a grid and back, as the QDQ operators of ONNX compute it.

Quantizing rounds half to even before the zero point is added: q = round(x / scale) - offset,
clipped to the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_quant.encodings.block_layout import to_tensor_axes
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]


def quantize(encoding: Encoding, values: ArrayLike) -> FloatArray:
    """Steps q in [0, 2**bits - 1] of real `values`, float64, same shape."""
    real = np.asarray(values, dtype=np.float64)
    scale, offset = grid_over(encoding, real.shape)
    whole = np.floor(offset)
    steps: FloatArray = np.rint(real / scale - (offset - whole)) - whole
    return np.clip(steps, 0.0, encoding.steps)


def dequantize(encoding: Encoding, steps: ArrayLike) -> FloatArray:
    """Real values (q + offset) * scale of steps q, float64, same shape."""
    q = np.asarray(steps, dtype=np.float64)
    scale, offset = grid_over(encoding, q.shape)
    return (q + offset) * scale


def grid_over(encoding: Encoding, shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Scale and offset of every element, broadcastable to a tensor of `shape`.

    Raises EncodingsError if the grid does not fit the shape or an axis is not known.
    """
    scale, offset = encoding.step_scale, encoding.step_offset
    if encoding.granularity is Granularity.PER_TENSOR:
        return scale, offset
    axis = encoding.axis
    if axis is None:
        raise EncodingsError(
            "the channel axis of the encoding is not known",
            hint="resolve the encoding with the shape of its tensor first",
        )
    if encoding.granularity is Granularity.PER_CHANNEL:
        layout = [1] * len(shape)
        if not -len(shape) <= axis < len(shape) or shape[axis] != scale.size:
            raise EncodingsError(
                f"{scale.size} channels on axis {axis} do not fit a tensor of shape {list(shape)}"
            )
        layout[axis] = scale.size
        return scale.reshape(layout), offset.reshape(layout)
    size, block_axis = encoding.block_size, encoding.block_axis
    if size is None or block_axis is None or scale.ndim != 2:
        raise EncodingsError(
            "the block axis of the encoding is not known",
            hint="resolve the encoding with the shape of its tensor first",
        )
    if shape[axis] != scale.shape[0] or shape[block_axis] != scale.shape[1] * size:
        raise EncodingsError(
            f"{scale.shape[0]} channels of {scale.shape[1]} blocks of {size} do not fit a tensor "
            f"of shape {list(shape)}"
        )
    wide, low = np.repeat(scale, size, axis=1), np.repeat(offset, size, axis=1)
    return (
        to_tensor_axes(wide, axis, block_axis, len(shape)),
        to_tensor_axes(low, axis, block_axis, len(shape)),
    )
