"""The small base models of the conformance fixtures, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.adapters.base_modules import BaseSizes, Tile

KINDS = Path(__file__).parents[1] / "fixtures" / "kinds"
_EMBEDDING = "embedding"


class FixtureBase:
    """Implements BaseModules over `bases/<name>`; tiles are small, so that rules meet several."""

    def __init__(self, name: str, order: tuple[str, ...] = ()) -> None:
        folder = KINDS / "bases" / name
        self._weights = load_file(folder / "weights.safetensors")
        listed = json.loads((folder / "base.json").read_text("utf-8"))["modules"]
        self._modules: dict[str, dict[str, Any]] = {module["name"]: module for module in listed}
        self._order = order

    def sizes(self, module: str) -> BaseSizes:
        facts = self._modules[module]
        is_embedding = facts["type"] == _EMBEDDING
        shape = self.weight(module).shape
        return BaseSizes(
            in_features=shape[1] * facts["groups"],
            out_features=shape[0],
            kernel=tuple(shape[2:]),
            groups=facts["groups"],
            is_embedding=is_embedding,
        )

    def tiles(self, module: str) -> Iterator[Tile]:
        weight = self.weight(module)
        for row in range(0, weight.shape[0], 5):
            for column in range(0, weight.shape[1], 7):
                rows, columns = slice(row, row + 5), slice(column, column + 7)
                values = weight[rows, columns]
                yield Tile(
                    slice(row, row + values.shape[0]),
                    slice(column, column + values.shape[1]),
                    values,
                )

    def bias(self, module: str) -> NDArray[np.float64]:
        bias = self._weights.get(f"{module}.bias")
        if bias is None:
            return np.zeros(self.weight(module).shape[0])
        return bias.astype(np.float64)

    def order(self) -> tuple[str, ...]:
        return self._order

    def weight(self, module: str) -> NDArray[np.float32]:
        """`[out, in, *kernel]`; an embedding's table `[V, dim]` as `[dim, V]`."""
        facts = self._modules[module]
        own = "in_proj_weight" if facts["type"] == "mha" else "weight"
        weight: NDArray[np.float32] = self._weights[f"{module}.{own}"]
        return weight.T if facts["transposed"] or facts["type"] == _EMBEDDING else weight


@cache
def fixture_base(name: str, order: tuple[str, ...] = ()) -> FixtureBase:
    return FixtureBase(name, order)
