"""Min-max calibration: the grid of a range, and of the values of a weight.

    symmetric    scale = max(-min / 2**(bits - 1), max / (2**(bits - 1) - 1)), offset -2**(bits - 1)
    asymmetric   scale = (max - min) / (2**bits - 1),  offset = round(min / scale)

The range is widened to contain 0, and to a width of MIN_RANGE: a grid of zeros is not valid. These
are the rules of AIMET's min-max scheme; the scales of weights are rounded to float32 as AIMET's
are, so that they agree bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]

MIN_RANGE = 1e-5
"""The least max - min of a grid."""

# A little above MIN_RANGE, so that rounding the scale to float32 (2**-24) does not go below it.
_WIDENED = MIN_RANGE * (1 + 2.0**-20)


def from_range(
    minimum: ArrayLike,
    maximum: ArrayLike,
    *,
    bits: int,
    symmetric: bool = False,
    axis: int | None = None,
    single: bool = False,
) -> Encoding:
    """The grid of a range: per tensor for scalars, per channel for `[channels]`.

    single: round the scale to float32, as it is for weights.

    With streamed values, keep the running minimum and maximum and call this once at the end. An
    asymmetric grid may miss an end of the range by half a step, the rounding of its offset; a
    symmetric one covers it to double precision. A channel without values other than 0 gets the
    largest scale of the others.

    Raises EncodingsError for values that are not finite, or a minimum above its maximum.
    """
    low, high = np.asarray(minimum, dtype=np.float64), np.asarray(maximum, dtype=np.float64)
    if low.shape != high.shape or low.ndim > 1 or not low.size:
        raise EncodingsError(
            f"expected two numbers or two equally long lists, got shapes {list(low.shape)} and "
            f"{list(high.shape)}"
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise EncodingsError(
            "the range is not finite", hint="check the values for NaN and infinity"
        )
    if (low > high).any():
        raise EncodingsError("a minimum is above its maximum")
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    half, steps = 2.0 ** (bits - 1), 2.0**bits - 1
    exact = np.maximum(-low / half, high / (half - 1)) if symmetric else (high - low) / steps
    largest = exact.argmax()
    empty = (low == 0) & (high == 0)
    scale = np.maximum(np.where(empty, exact.flat[largest], exact), _WIDENED / steps)
    if symmetric:
        offset = np.full(scale.shape, -half)
    else:
        rounded = np.clip(np.rint(low / scale), -steps, 0.0) + 0.0
        offset = np.where(empty, rounded.flat[largest], rounded)
    if single:
        scale = scale.astype(np.float32)
    if low.ndim == 0:
        return Encoding.per_tensor(scale, offset, bits=bits, symmetric=symmetric)
    return Encoding.per_channel(scale, offset, bits=bits, symmetric=symmetric, axis=axis)


def from_values(
    values: ArrayLike,
    *,
    granularity: Granularity,
    bits: int = 8,
    symmetric: bool = True,
    axis: int | None = None,
) -> Encoding:
    """The grid of a weight, per tensor or per channel along `axis`, with a float32 scale.

    Raises EncodingsError for other granularities, an empty weight, or values that are not finite.
    """
    array = np.asarray(values)
    if not array.size:
        raise EncodingsError(f"a weight of shape {list(array.shape)} has no range")
    if granularity is Granularity.PER_TENSOR:
        return from_range(array.min(), array.max(), bits=bits, symmetric=symmetric, single=True)
    if granularity is Granularity.PER_CHANNEL:
        if axis is None or not -array.ndim <= axis < array.ndim:
            raise EncodingsError(f"axis {axis} is not an axis of shape {list(array.shape)}")
        rest = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        low, high = array.min(axis=rest), array.max(axis=rest)
        return from_range(low, high, bits=bits, symmetric=symmetric, axis=axis, single=True)
    raise EncodingsError(
        f"weights are calibrated per tensor or per channel, not {granularity.value}",
        hint="give the encodings of the use case as a file",
    )
