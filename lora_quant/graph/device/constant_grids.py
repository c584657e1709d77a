"""Grids of the constants of a graph: weights as they are given, the others from their values.

weight with an encoding       its grid
bias of Conv, Gemm            int32, on the product of the grids of x and W: it is added to
                              the sums of products as they are
any other constant            the per-tensor grid of its values, in the type of activations
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from lora_quant.errors import EncodingsError, Where
from lora_quant.graph.device.grids import BaseGrids, grid_ends, range_grid
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.quantized.grid import Grid

MOST_VALUES = 1 << 22
"""Larger constants have to bring an encoding: they are weights, which are not read twice."""

_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_WEIGHT_INPUT = 1


@dataclass(frozen=True, eq=False)
class ConstantGrid:
    """The grid of one constant, and the codes that its values may have: `[lowest, highest]`.

    Weights of 4 bits lie in containers of 8.
    """

    grid: Grid
    lowest: int
    highest: int

    @classmethod
    def whole(cls, grid: Grid) -> ConstantGrid:
        """All codes of the container."""
        ends = np.iinfo(grid.dtype)
        return cls(grid, int(ends.min), int(ends.max))


def constant_grids(
    model: ModelFile,
    base: BaseGrids,
    given: Mapping[str, ConstantGrid],
    dtype: str,
) -> dict[str, ConstantGrid]:
    """The grids of all constants that nodes compute with; those of `base` are spread meanwhile.

    `given` has the weights with an encoding; `dtype` is that of computed grids. Raises
    EncodingsError for a large constant without an encoding.
    """
    for name, weight in given.items():
        if weight.grid.axis is None:
            base.grids.setdefault(name, weight.grid)
    for name in base.added_constants():
        base.add_range(name, *_range(model, base, name))
    base.spread()
    found: dict[str, ConstantGrid] = {}
    biases = _biases(base)
    for name in list(base.constants()):
        if name in given:
            found[name] = given[name]
            continue
        if name in biases:
            grid = _bias_grid(base, given, biases[name])
            if grid is not None:
                found[name] = ConstantGrid.whole(grid)
                continue
        known = base.grids.get(name)
        if known is None:
            known = base.grids[name] = range_grid(*_used_range(model, base, name), dtype)
        found[name] = ConstantGrid.whole(known)
    base.spread()
    return found


def _biases(base: BaseGrids) -> dict[str, NodeProto]:
    """The constants that are the bias of one node, and of no other."""
    found: dict[str, NodeProto] = {}
    for node in base.proto.graph.node:
        position = _BIAS.get(node.op_type)
        if position is None or len(node.input) <= position:
            continue
        name = node.input[position]
        if base.index.sole_consumer(name) is node or not base.index.is_shared(name):
            found[name] = node
    return found


def _bias_grid(base: BaseGrids, given: Mapping[str, ConstantGrid], node: NodeProto) -> Grid | None:
    """The grid of the sums of products; None where x or W has none."""
    x, weight = base.grids.get(node.input[0]), given.get(node.input[_WEIGHT_INPUT])
    if x is None or weight is None:
        return None
    scale = (x.scale.astype(np.float64)[0] * weight.grid.scale).astype(np.float32)
    zero: NDArray[np.integer] = np.zeros(scale.shape, np.int32)
    return Grid("int32", scale, zero, axis=None if weight.grid.axis is None else 0)


def _used_range(model: ModelFile, base: BaseGrids, name: str) -> tuple[float, float]:
    """The range of a constant, as far as it matters to what it is added to."""
    low, high = _values_range(model, base, name)
    found = [_useful(base, node, name) for node in base.index.consumers[name]]
    if name not in base.index.captured:
        low = max(low, min(bottom for bottom, _ in found))
        high = min(high, max(top for _, top in found))
    return _finite(model, name, low, high)


def _useful(base: BaseGrids, node: NodeProto, name: str) -> tuple[float, float]:
    """The values of a constant that one reader can tell from those beyond; all, for most."""
    if node.op_type == "Add":
        other = node.input[1] if node.input[0] == name else node.input[0]
        term, total = base.grids.get(other), base.grids.get(node.output[0])
        if term is not None and total is not None:
            (bottom, top), (least, most) = grid_ends(term), grid_ends(total)
            return least - top, most - bottom
    return -math.inf, math.inf


def _range(model: ModelFile, base: BaseGrids, name: str) -> tuple[float, float]:
    """The range of a constant. Raises EncodingsError if it has none, or is too large to be read."""
    return _finite(model, name, *_values_range(model, base, name))


def _finite(model: ModelFile, name: str, low: float, high: float) -> tuple[float, float]:
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    raise EncodingsError(
        "a constant without an encoding holds values that are not finite",
        where=Where(file=model.path, tensor=name),
        hint="calibrate it as well: an attention mask needs a range of its own",
    )


def _values_range(model: ModelFile, base: BaseGrids, name: str) -> tuple[float, float]:
    tensor: TensorProto = base.index.initializers[name]
    where = Where(file=model.path, tensor=name)
    count = math.prod(tensor.dims)
    if count > MOST_VALUES:
        raise EncodingsError(
            f"a weight of shape {list(tensor.dims)} has no encoding",
            where=where,
            hint="give the encodings of the base's weights as well: this target runs on integers "
            "only",
        )
    with stored_values(model, tensor, where) as read:
        values = read(0, count)
    return (float(values.min()), float(values.max())) if count else (0.0, 0.0)
