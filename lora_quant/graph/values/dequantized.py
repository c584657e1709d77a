"""The float values of what a DequantizeLinear reads, a range of them at a time.

    w = (q - zero_point) * scale      per tensor, per channel or per block

Floats that a QuantizeLinear rounds first are rounded here: to the nearest code, halves to the even
one, those out of range to the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.dequantization import Dequantization
from lora_quant.graph.files.element_types import DTYPES, type_name
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.stored_values import stored_values

Array = NDArray[Any]

_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-(1 << 15), (1 << 15) - 1),
    TensorProto.UINT16: (0, (1 << 16) - 1),
}


class Dequantizer:
    """Makes floats of ranges of one stored tensor; scale and zero point are read at once."""

    def __init__(
        self, model: ModelFile, stored: TensorProto, how: Dequantization, where: Where
    ) -> None:
        """Raises GraphError or InputMissingError if scale or zero point cannot be read."""
        shape = tuple(stored.dims)
        sizes = tuple(how.scale.dims)
        # Along each axis: how many values share one scale.
        self._steps = list(shape)
        if how.block_size > 0:
            self._steps = [1] * len(shape)
            self._steps[how.axis] = how.block_size
        elif math.prod(sizes) > 1:
            self._steps[how.axis] = 1
        grid = tuple(-(-size // step) for size, step in zip(shape, self._steps, strict=True))
        self._dtype = DTYPES[how.scale.data_type]
        self._scale = _all(model, how.scale, where).astype(np.float32).reshape(grid)
        self._zero = np.zeros((1,) * len(shape), np.int32)
        if how.zero_point is not None:
            self._zero = _all(model, how.zero_point, where).astype(np.int32).reshape(grid)
        self._limits = None
        if how.rounds:
            if how.codes not in _LIMITS:
                raise GraphError(
                    f"values that are quantized to {type_name(how.codes)} cannot be read, "
                    "expected integers of 4 to 16 bits",
                    where=where,
                    hint="give the float graph that was quantized",
                )
            self._limits = _LIMITS[how.codes]

    def __call__(self, values: Array, ranges: Sequence[slice]) -> Array:
        """`values` of the stored tensor at `ranges`, one of each axis, as floats."""
        at = self._places(ranges)
        scale = self._scale[at]
        zero = self._zero if self._zero.size == 1 else self._zero[at]
        if self._limits is not None:
            rounded = np.rint(values.astype(np.float32) / scale) + zero
            values = np.clip(rounded, *self._limits)
        result: Array = (values.astype(np.int32) - zero).astype(np.float32) * scale
        return result.astype(self._dtype)

    def steps(self, ranges: Sequence[slice]) -> NDArray[np.float32]:
        """The distance of neighbouring codes at `ranges`, a float for every value."""
        steps: NDArray[np.float32] = np.abs(self._scale[self._places(ranges)])
        return steps

    def _places(self, ranges: Sequence[slice]) -> tuple[NDArray[np.intp], ...]:
        """Which scale each value has."""
        return np.ix_(
            *(
                np.arange(one.start, one.stop) // step
                for one, step in zip(ranges, self._steps, strict=True)
            )
        )


def _all(model: ModelFile, tensor: TensorProto, where: Where) -> Array:
    with stored_values(model, tensor, where) as read:
        return read(0, math.prod(tensor.dims))
