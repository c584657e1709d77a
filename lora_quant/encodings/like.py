"""The grid of other values of a weight, in the structure of the grid that it has.

A use case that replaces a weight may change its scales, but not how they are laid out: bits,
symmetry, channels and blocks stay those of the base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.calibrate import from_range, from_values
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.errors import EncodingsError


def grid_like(known: Encoding, values: NDArray[Any]) -> Encoding:
    """The min-max grid of `values` in the structure of `known`, whose axes are known.

    Raises EncodingsError if `known` does not fit the shape of `values`, or they are not finite.
    """
    if known.scale is None:
        return known
    if known.granularity not in BLOCKWISE:
        return from_values(
            values,
            granularity=known.granularity,
            bits=known.bits,
            symmetric=known.symmetric,
            axis=known.axis,
        )
    low, high = _block_ends(known, values)
    bits = known.compressed_bits or known.bits
    flat = from_range(low.ravel(), high.ravel(), bits=bits, symmetric=known.symmetric, single=True)
    scale = flat.stored_scale.reshape(low.shape)
    if known.granularity is Granularity.PER_BLOCK:
        return replace(known, scale=scale, offset=flat.stored_offset.reshape(low.shape))
    # The channel's step times a whole number of at most `most`, which covers every block.
    most = 2.0 ** (known.bits - bits)
    step = (scale.max(axis=1) / most).astype(np.float32).astype(np.float64)
    return replace(known, scale=step, block_scale=np.clip(np.ceil(scale / step[:, None]), 1, most))


def _block_ends(
    known: Encoding, values: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value of every block, `[channels, blocks]` each."""
    axis, block_axis, size = known.axis, known.block_axis, known.block_size
    if axis is None or block_axis is None or size is None:
        raise EncodingsError(
            "the axes of a blockwise encoding are not known",
            hint="give the encoding of the replaced weight in the file of the use case",
        )
    if values.shape[block_axis] % size:
        raise EncodingsError(
            f"blocks of {size} do not divide axis {block_axis} of shape {list(values.shape)}"
        )
    ordered = np.moveaxis(values, (axis, block_axis), (0, 1)).astype(np.float64)
    blocks = ordered.reshape(ordered.shape[0], ordered.shape[1] // size, -1)
    return blocks.min(axis=2), blocks.max(axis=2)
