"""Which grid every float tensor of a graph gets, where encodings tell it and where they do not.

    given                                     as it is
    Reshape, Transpose, Slice, Gather, ...    the grid of what they move, whatever is given; or,
                                              where only that of the result is known, that one
    W x before + b or Relu, in one encoding   b: y's range moved by b; Relu and Clip: y's own
    a constant                                from its values; see constant_grids

Calibration tools leave the second and the third out: they quantize a whole group of operators as
one. Devices move codes: the HTP's compiler does not finish on a Gather between two grids. A tensor
that stays without a grid could not run on an integer device, and is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from lora_quant.errors import EncodingsError, GraphError, Where, some
from lora_quant.graph.device.static_shapes import element_types
from lora_quant.graph.files.element_types import type_name
from lora_quant.graph.files.graph_index import GraphIndex, build_index
from lora_quant.graph.quantized.grid import Grid

# What they give holds values of their first input, or of all inputs (Concat), and no others.
_MOVING = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# What they are given has the same values as what they give.
_KEEPING_ALL = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "SpaceToDepth",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# Values beyond y's grid would be clipped to the same end a moment later.
_CLIPPING = frozenset({"Clip", "Relu"})
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTIZERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
# Inputs that set an operator up, and are no numbers that it computes with.
_PARAMETERS = {
    "Clip": (1, 2),
    "MatMulNBits": (1, 2, 3),
    "OneHot": (2,),
    "Pad": (2,),
    "Resize": (1, 2),
    "Upsample": (1,),
}


class BaseGrids:
    """The grids of a graph's tensors, found once.

    `given` maps tensors to their grids, None for one that is meant to stay float.
    """

    def __init__(self, proto: ModelProto, given: Mapping[str, Grid | None], where: Where) -> None:
        """Raises GraphError for a graph that computes in another float type than float32."""
        self.proto = proto
        self.index: GraphIndex = build_index(proto)
        self.grids: dict[str, Grid] = {n: g for n, g in given.items() if g is not None}
        self._where = where
        self._types = element_types(proto)
        self._floating = frozenset(name for name, grid in given.items() if grid is None)
        self._quantized = self._quantized_already()
        self._check_type()
        self._constants = self.index.initializers
        self._turned = self._turned_weights()
        self._ranges: dict[str, tuple[float, float]] = {}

    def add_range(self, constant: str, low: float, high: float) -> None:
        """Tell the range of a constant, for what is added to a product."""
        self._ranges[constant] = (low, high)

    def added_constants(self) -> Iterator[str]:
        """The constants that are added to a product without a grid."""
        for node in self.proto.graph.node:
            product, constant = self._biased(node)
            if product is not None and product not in self.grids:
                yield constant

    def spread(self) -> None:
        """Give grids to what has none, as far as neighbours tell them."""
        nodes = list(self.proto.graph.node)
        found = -1
        while found != len(self.grids):
            found = len(self.grids)
            for node in nodes:
                self._forward(node)
            for node in reversed(nodes):
                self._backward(node)
        for node in nodes:
            self._forward(node)

    def activations(self) -> dict[str, Grid]:
        """The grid of every float activation that is not quantized already, in graph order.

        Raises EncodingsError for those that have none.
        """
        names = [v.name for v in self.proto.graph.input if self.is_activation(v.name)]
        names += [n for node in self.proto.graph.node for n in node.output if n]
        wanted = [name for name in names if self.is_activation(name)]
        missing = [name for name in wanted if name not in self.grids]
        if missing:
            raise EncodingsError(
                f"{len(missing)} tensors have no encoding, and nothing tells their range: "
                f"{some(missing)}",
                where=Where(file=self._where.file, tensor=missing[0]),
                hint="this target runs on integers only: calibrate these tensors as well, or "
                "simplify the graph before it is calibrated",
            )
        return {name: self.grids[name] for name in wanted}

    def is_activation(self, name: str) -> bool:
        """Whether a tensor needs Q/DQ."""
        return (
            name not in self._constants
            and name not in self._quantized
            and name not in self._turned
            and name not in self._floating
            and self._types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT
            and not self._is_code(name)
        )

    def constants(self) -> Iterator[str]:
        """The float constants that nodes compute with, in the order in which they are read."""
        seen: set[str] = set()
        for node in self.proto.graph.node:
            if node.op_type in _QUANTIZERS:
                continue
            skipped = _PARAMETERS.get(node.op_type, ())
            for position, name in enumerate(node.input):
                tensor = self._constants.get(name)
                if tensor is None or name in seen or position in skipped:
                    continue
                seen.add(name)
                if tensor.data_type == TensorProto.FLOAT and name not in self._floating:
                    yield name

    def _is_code(self, name: str) -> bool:
        """Whether a Q or DQ of the graph gives it; those of ONNX Runtime have no type here."""
        node = self.index.producers.get(name)
        return node is not None and node.op_type in _QUANTIZERS

    def _quantized_already(self) -> frozenset[str]:
        """Tensors that a QDQ graph has on a grid: behind a DQ, or read by nothing but a Q."""
        found: set[str] = set()
        for node in self.proto.graph.node:
            if node.op_type == "DequantizeLinear":
                found.add(node.output[0])
            elif node.op_type in _QUANTIZERS:
                readers = self.index.consumers.get(node.input[0], [])
                if all(reader.op_type in _QUANTIZERS for reader in readers):
                    found.add(node.input[0])
        return frozenset(found)

    def _turned_weights(self) -> frozenset[str]:
        """Transposed weights, which engines turn when they load the graph: no step of their own."""
        return frozenset(
            node.output[0]
            for node in self.proto.graph.node
            if node.op_type == "Transpose" and node.input[0] in self._constants
        )

    def _check_type(self) -> None:
        for node in self.proto.graph.node:
            for name in node.output:
                element = self._types.get(name)
                if element in _NARROW:
                    raise GraphError(
                        f"the graph computes in {type_name(element)}, expected float32",
                        where=Where(file=self._where.file, tensor=name, node=node.name or None),
                        hint="export the base graph in float32: this target quantizes all of it, "
                        "so that nothing is gained by a narrow float type",
                    )

    def _forward(self, node: NodeProto) -> None:
        if node.op_type not in _MOVING:
            return
        sources = list(node.input) if node.op_type == "Concat" else [node.input[0]]
        grids = [self.grids.get(name) for name in sources]
        first = grids[0]
        if first is None or first.axis is not None or not all(_equal(first, g) for g in grids):
            return
        for name in node.output:
            if not self.is_activation(name) or (node.op_type == "Concat" and name in self.grids):
                continue
            self.grids[name] = first

    def _backward(self, node: NodeProto) -> None:
        grid = self.grids.get(node.output[0]) if node.output else None
        if grid is None:
            return
        product, constant = self._biased(node)
        if product is not None:
            if product not in self.grids and constant in self._ranges:
                self.grids[product] = _moved(grid, *self._ranges[constant])
            return
        source = node.input[0] if node.input else ""
        if source in self.grids or not self.is_activation(source):
            return
        # With other readers the grid of this one could clip what they are given.
        is_alone = self.index.sole_consumer(source) is not None
        if node.op_type in _KEEPING_ALL or (node.op_type in _CLIPPING and is_alone):
            self.grids[source] = grid

    def _biased(self, node: NodeProto) -> tuple[str | None, str]:
        """The product by a weight, and the bias, of an Add that alone reads the product."""
        if node.op_type != "Add":
            return None, ""
        for product, constant in (tuple(node.input), tuple(reversed(node.input))):
            producer = self.index.producers.get(product)
            if (
                constant in self._constants
                and producer is not None
                and producer.op_type in _LINEAR
                and not self.is_activation(producer.input[1])
                and self.index.sole_consumer(product) is not None
            ):
                return product, constant
        return None, ""


def _equal(one: Grid, other: Grid | None) -> bool:
    return (
        other is not None
        and one.dtype == other.dtype
        and np.array_equal(one.scale, other.scale)
        and np.array_equal(one.zero_point, other.zero_point)
    )


def _moved(grid: Grid, low: float, high: float) -> Grid:
    """The grid of y - b for y on `grid` and b in [low, high]."""
    bottom, top = grid_ends(grid)
    return range_grid(bottom - high, top - low, grid.dtype)


def grid_ends(grid: Grid) -> tuple[float, float]:
    """The smallest and the largest value of a per-tensor grid."""
    ends = np.iinfo(grid.dtype)
    scale, zero = float(grid.scale[0]), int(grid.zero_point[0])
    return (int(ends.min) - zero) * scale, (int(ends.max) - zero) * scale


def range_grid(low: float, high: float, dtype: str) -> Grid:
    """The per-tensor grid from `low` to `high`, which 0 is on; the offset is rounded."""
    ends = np.iinfo(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (int(ends.max) - int(ends.min)), 1e-10)
    zero = int(np.clip(round(int(ends.min) - low / scale), int(ends.min), int(ends.max)))
    return Grid(dtype, np.array([scale], np.float32), _zeros(zero, dtype))


def _zeros(value: int, dtype: str) -> NDArray[np.integer]:
    return np.array([value], np.dtype(dtype))
