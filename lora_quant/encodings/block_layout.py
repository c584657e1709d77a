"""The order of blockwise scales: ours is `[channels, blocks]`, the dialects have others.

2.0.0 keeps the weight's own axes with the block axis divided by the block size; axes that are
neither channel nor block have length 1. 1.0.0 is flat: channel-major for a weight of two axes
whatever their order (`[in, out]` is transposed), and in the weight's own order otherwise, which is
block-major for the `[in, out, k, k]` of ConvTranspose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]


def to_tensor_axes(array: FloatArray, axis: int, block_axis: int, ndim: int) -> FloatArray:
    """`[channels, blocks]` as an array of `ndim` axes with 1 for all other axes."""
    layout = [1] * ndim
    layout[axis], layout[block_axis] = array.shape
    return (array if axis < block_axis else array.T).reshape(layout)


def from_tensor_axes(array: FloatArray, block_axis: int) -> tuple[FloatArray, int]:
    """`[channels, blocks]` of an array in the weight's own axes, and the channel axis.

    The channel axis is the only other axis that is longer than 1; if there is none it is axis 0,
    or 1 where blocks lie on 0. Raises EncodingsError if several are.
    """
    long = [i for i, n in enumerate(array.shape) if n > 1 and i != block_axis]
    if len(long) > 1:
        raise EncodingsError(
            f"block scales of shape {list(array.shape)} vary over more than a channel and a block "
            "axis",
            hint="this tool knows one channel axis and one block axis per weight",
        )
    axis = long[0] if long else int(block_axis == 0)
    blocks = array.shape[block_axis]
    channel_major = array if axis < block_axis else np.moveaxis(array, axis, 0)
    return channel_major.reshape(-1, blocks), axis


def flatten(array: FloatArray, encoding: Encoding) -> FloatArray:
    """The flat order of 1.0.0 for `[channels, blocks]` of `encoding`."""
    return (array.T if is_block_major(encoding) else array).ravel()


def unflatten(array: FloatArray, channels: int, *, block_major: bool) -> FloatArray:
    """`[channels, blocks]` of the flat order of 1.0.0."""
    if array.size % channels:
        raise EncodingsError(
            f"{array.size} block scales cannot be divided over {channels} channels"
        )
    flat = array.ravel()
    return flat.reshape(-1, channels).T if block_major else flat.reshape(channels, -1)


def is_block_major(encoding: Encoding) -> bool:
    """Whether 1.0.0 orders the blocks of this encoding with the channel as the fastest axis."""
    axis, block_axis, ndim = encoding.axis, encoding.block_axis, encoding.ndim
    known = axis is not None and block_axis is not None and ndim is not None
    return known and order_is_block_major(axis or 0, block_axis or 0, ndim or 0)


def order_is_block_major(axis: int, block_axis: int, ndim: int) -> bool:
    """The rule of `is_block_major` for a weight of `ndim` axes."""
    return ndim > 2 and axis > block_axis
