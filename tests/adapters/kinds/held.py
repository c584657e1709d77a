"""Checkpoints and bases that are held in memory, for tests of one rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseSizes, Tile
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.adapters.lowered import Dense, Lowered
from lora_quant.errors import AdapterError

Array = NDArray[Any]
WEIGHTS = Path("adapter_model.safetensors")
CONFIG = Path("adapter_config.json")
Q = "layers.0.q_proj"
_DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}


@dataclass(frozen=True, eq=False)
class Held:
    """A TensorSource of arrays."""

    tensors: Mapping[str, Array]
    path: Path = WEIGHTS
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise AdapterError(f"no {name}")
        array = self.tensors[name]
        return TensorInfo(_DTYPES[str(array.dtype)], array.shape, 0, array.nbytes)

    def read(self, name: str) -> Array:
        return np.ascontiguousarray(self.tensors[name])

    read_numbers = read


@dataclass(frozen=True, eq=False)
class SmallBase:
    """BaseModules of weights `[out, in, *kernel]`, read in tiles of three by two."""

    weights: Mapping[str, Array]
    biases: Mapping[str, Array] = field(default_factory=dict)

    def sizes(self, module: str) -> BaseSizes:
        out, inputs, *kernel = self.weights[module].shape
        return BaseSizes(inputs, out, tuple(kernel))

    def tiles(self, module: str) -> Iterator[Tile]:
        weight = self.weights[module]
        for row in range(0, weight.shape[0], 3):
            for column in range(0, weight.shape[1], 2):
                values = weight[row : row + 3, column : column + 2]
                rows, columns = values.shape[:2]
                yield Tile(slice(row, row + rows), slice(column, column + columns), values)

    def bias(self, module: str) -> NDArray[np.float64]:
        return np.asarray(self.biases.get(module, np.zeros(len(self.weights[module]))), np.float64)

    def order(self) -> tuple[str, ...]:
        return tuple(self.weights)


def checkpoint(kind: str, tensors: Mapping[str, Array], **fields: Any) -> Checkpoint:
    """A checkpoint of that kind; tensors under their names in the file, without PEFT's prefix."""
    made = {"peft_type": kind, "target_modules": ["q_proj"], **fields}
    return Checkpoint(PeftConfig(CONFIG, kind, MappingProxyType(made)), Held(tensors))


def of_module(tensors: Mapping[str, Array], module: str = Q) -> dict[str, Array]:
    """Parameters of one module under their names in the file."""
    return {f"{module}.{name}": array for name, array in tensors.items()}


def lowered(
    rule: LoweringRule, held: Checkpoint, base: SmallBase | None = None, module: str = Q
) -> Lowered:
    """One module in canonical form, its ranks and sizes held against the description."""
    shape = rule.describe(held).shapes[module]
    found = rule.lower(held, shape, base)
    assert isinstance(found, Lowered)
    assert found.A.shape[0] == found.B.shape[1] == len(found.s) == shape.rank
    if shape.rank and shape.in_features is not None:
        assert found.A.shape == (shape.rank, shape.in_features, *(shape.kernel or ()))
    if shape.rank and shape.out_features is not None:
        assert found.B.shape[0] == shape.out_features
    return found


def dense(rule: LoweringRule, held: Checkpoint, base: SmallBase, module: str = Q) -> Dense:
    """One module whose update has no low rank."""
    shape = rule.describe(held).shapes[module]
    found = rule.lower(held, shape, base)
    assert shape.dense
    assert isinstance(found, Dense)
    return found


def update(found: Lowered) -> NDArray[np.float64]:
    """`B diag(s) A`, `[out, in, *kernel]`."""
    product = np.tensordot(found.B.astype(np.float64) * found.s, found.A.astype(np.float64), 1)
    result: NDArray[np.float64] = product
    return result
