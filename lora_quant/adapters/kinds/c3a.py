"""C3A: the update is a grid of circulant blocks, each told by one vector.

ΔW[m b + k, n b + j] = w[m, n, (j - k) mod b] / in        w [out / b, in / b, b]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.dotted_patterns import dotted_value
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Dense, ModuleShape


class C3aRule(KindRule):
    """ΔW = circulant blocks / in."""

    kind: ClassVar[str] = "C3A"
    rank = "full"
    required = ("c3a_kernel",)
    used = frozenset({"block_size", "block_size_pattern"})
    neutral = frozenset({"init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Sizes from the blocks; their size must be the configuration's."""
        rows, columns, size = headers.dims("c3a_kernel", 3)
        expected = dotted_value(
            headers.config, "block_size_pattern", "block_size", headers.module, 256
        )
        if size != expected:
            raise headers.error(
                "c3a_kernel",
                f"c3a_kernel has blocks of {size}, expected {expected} from the configuration",
            )
        return ModuleShape(
            headers.module, 0, columns * size, rows * size, scale=headers.scale, dense=True
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = circulant(w) / in."""
        matrix = circulant(module["c3a_kernel"])
        return Dense(matrix / matrix.shape[1])


def circulant(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[rows, columns, b]` -> `[rows * b, columns * b]`; row k of a block is turned right by k."""
    rows, columns, size = blocks.shape
    place = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
    return blocks[:, :, place].swapaxes(1, 2).reshape(rows * size, columns * size)
