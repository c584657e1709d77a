"""Products with the base's weight, read tile by tile, so that the weight is never whole in memory.

W [out, in, *kernel] stands for the matrix [out, in * kernel]; grouped: in / groups.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.errors import AdapterError, Where

Matrix = NDArray[np.float64]


def weight_times(base: BaseModules, module: str, right: Matrix) -> Matrix:
    """W right: `[out, r]` of `right [in * kernel, r]`, float64."""
    sizes = base.sizes(module)
    columns = right.reshape(sizes.in_features // sizes.groups, -1, right.shape[1])
    product = np.zeros((sizes.out_features, right.shape[1]))
    for tile in base.tiles(module):
        values = tile.values.astype(np.float64).reshape(len(tile.values), -1)
        product[tile.rows] += values @ columns[tile.columns].reshape(-1, right.shape[1])
    return product


def times_weight(base: BaseModules, module: str, left: Matrix) -> Matrix:
    """left' W: `[r, in * kernel]` of `left [out, r]`, float64."""
    sizes = base.sizes(module)
    inner = sizes.in_features // sizes.groups
    product = np.zeros((left.shape[1], inner, math.prod(sizes.kernel)))
    for tile in base.tiles(module):
        values = tile.values.astype(np.float64)
        flat = values.reshape(len(values), -1)
        part = left[tile.rows].T @ flat
        product[:, tile.columns] += part.reshape(len(part), values.shape[1], -1)
    return product.reshape(left.shape[1], -1)


def expect_weight(
    base: BaseModules,
    module: str,
    file: Path,
    *,
    out: int | None = None,
    columns: int | None = None,
) -> None:
    """Hold the base's matrix against the sizes that an adapter's tensors tell; AdapterError."""
    sizes = base.sizes(module)
    width = sizes.in_features // sizes.groups * math.prod(sizes.kernel)
    for what, got, expected in (
        ("rows", sizes.out_features, out),
        ("columns", width, columns),
    ):
        if expected is not None and got != expected:
            raise AdapterError(
                f"the base's weight has {got} {what}, expected {expected} from the adapter's "
                "tensors",
                where=Where(file=file, module=module),
                hint="the adapter was trained on another model; check the base",
            )
