"""What a lowering rule may ask of the base model: sizes, weights in tiles, biases, module order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.lowered import FloatArray


@dataclass(frozen=True)
class BaseSizes:
    """One module of the base. For an embedding, `in_features` is the vocabulary."""

    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    is_embedding: bool = False


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows and columns of a weight: `values` is `[rows, columns, *kernel]` of `[out, in, *kernel]`.

    float32, or the base's own 16-bit type.
    """

    rows: slice
    columns: slice
    values: FloatArray


class BaseModules(Protocol):
    """The modules of a base model by the names that an adapter gives them.

    Every method raises a LoraQuantError that names the module if the base has no such module, or
    cannot tell.
    """

    def sizes(self, module: str) -> BaseSizes:
        """Sizes of a module."""

    def tiles(self, module: str) -> Iterator[Tile]:
        """The weight in tiles of a few megabytes that together cover it once, in storage order."""

    def bias(self, module: str) -> NDArray[np.float64]:
        """The bias `[out]`; zeros for a module without one."""

    def order(self) -> tuple[str, ...]:
        """All modules in the order in which the model defines them, if that is known."""


def whole_weight(base: BaseModules, module: str) -> NDArray[np.float64]:
    """The weight of one module, `[out, in, *kernel]` in float64, for rules that factor it."""
    sizes = base.sizes(module)
    weight = np.empty((sizes.out_features, sizes.in_features // sizes.groups, *sizes.kernel))
    for tile in base.tiles(module):
        weight[tile.rows, tile.columns] = tile.values
    return weight
