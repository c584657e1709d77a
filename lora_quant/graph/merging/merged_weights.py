"""Writing the base with the weights of one use case merged into them: no branch, the same nodes.

    W' = g * W * h + delta        b' = g * b + c        for y = g * (W (h * x) + b) + delta x + c

Every W keeps its place, type and storage order: in the data file, which is copied from start to end
with the ranges of merged weights written anew, or inside the graph. A Transpose between W and its
node is honoured, the factor of a Gemm divided out. Only one weight's delta is in memory at a time.
Biases move into the graph file; see merged_bias.py. A weight that other nodes read as well cannot
be merged for one of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPES
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.model_file import serialize
from lora_quant.graph.files.rewritten_data import NewBytes, Sink, overlapping, rewrite
from lora_quant.graph.files.stored_values import ReadRange, stored_values
from lora_quant.graph.merging.merged_bias import MergedBiases
from lora_quant.graph.merging.merged_lines import PointUpdate, changes_weight, merged_lines
from lora_quant.graph.records import AttachPoint, Form, LinearNode

Array = NDArray[Any]
_HINT = "build without --merge, or export the graph without sharing the weight"


def write_merged(
    base: BaseGraph,
    points: Sequence[AttachPoint],
    update: Callable[[int], PointUpdate],
    create: Callable[[DataFile], AbstractContextManager[Sink]],
    *,
    replaced: Mapping[str, Callable[[], Array]] | None = None,
) -> bytes:
    """Write the base's data files with merged weights; returns the bytes of the merged graph.

    `update(number)` is asked once for every point, in the order in which their weights are stored.
    `create(data)` opens what a data file is written to. `replaced` gives new values of initializers
    by name, as they are stored; where they are merged as well, W and b are the new ones. The graph
    of `base` is edited: open it anew for each use case.

    Raises GraphError for a weight or bias that cannot be merged, InputMissingError if a data file
    cannot be read.
    """
    merge = _Merge(base, points, update, replaced or {})
    merge.replace_inside()
    for data in base.model.data_files:
        with create(data) as sink:
            rewrite(data, merge.external(), sink)
    merge.merge_inside()
    return serialize(base.model.proto, Where(file=base.path))


class _Merge:
    """The weights of all points and the replaced parameters, by the name of what stores them."""

    def __init__(
        self,
        base: BaseGraph,
        points: Sequence[AttachPoint],
        update: Callable[[int], PointUpdate],
        replaced: Mapping[str, Callable[[], Array]],
    ) -> None:
        self._base = base
        self._points = points
        self._update = update
        self._replaced = replaced
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, point in enumerate(points):
            self._check_float(point)
            self._numbers[point.linear.weight].append(number)
        self._biases = MergedBiases(base, self._all_values)
        self._overlapping = overlapping(base.model.proto)
        # As it was before any bias moved into the graph.
        self._stored = [
            (name, self._tensor(name), self._tensor(name).data_location == TensorProto.EXTERNAL)
            for name in dict.fromkeys((*self._numbers, *replaced))
        ]

    def external(self) -> Iterator[tuple[TensorProto, NewBytes]]:
        """What lies in data files."""
        for name, tensor, is_external in self._stored:
            if is_external:
                yield tensor, partial(self._new_bytes, name, tensor)

    def replace_inside(self) -> None:
        """Replace the parameters inside the graph that no weight is merged into."""
        self._rewrite_inside(is_merged=False)

    def merge_inside(self) -> None:
        """Merge the weights inside the graph, and put in the biases of all points."""
        self._rewrite_inside(is_merged=True)
        self._biases.apply()

    def _rewrite_inside(self, *, is_merged: bool) -> None:
        for name, tensor, is_external in self._stored:
            if is_external or (name in self._numbers) != is_merged:
                continue
            pieces = self._new_bytes(name, tensor)
            if pieces is not None:
                data = b"".join(pieces)
                for field in ("float_data", "double_data", "int32_data"):
                    tensor.ClearField(field)
                tensor.raw_data = data

    def _new_bytes(self, name: str, tensor: TensorProto) -> Iterable[bytes] | None:
        for number in self._numbers.get(name, ()):
            point, update = self._points[number], self._update(number)
            self._biases.merge(point, update.g, update.c)
            if changes_weight(update):
                self._check_own(point, tensor)
                return self._merged(point, update, tensor)
        if name in self._replaced:
            self._check_bytes(tensor, Where(file=self._base.path, tensor=name))
            return [self._new_values(tensor, name).tobytes()]
        return None

    def _merged(
        self, point: AttachPoint, update: PointUpdate, tensor: TensorProto
    ) -> Iterator[bytes]:
        linear, where = point.linear, self._where(point)
        with self._values(tensor, linear.weight, where) as read:
            yield from merged_lines(linear, update, tensor, read, where)

    @contextmanager
    def _values(self, tensor: TensorProto, name: str, where: Where) -> Iterator[ReadRange]:
        """Reads what is stored under `name`, or what replaces it."""
        if name in self._replaced:
            values = self._new_values(tensor, name).reshape(-1)
            yield lambda start, count: values[start : start + count]
        else:
            with stored_values(self._base.model, tensor, where) as read:
                yield read

    def _all_values(self, tensor: TensorProto, name: str, where: Where) -> Array:
        with self._values(tensor, name, where) as read:
            return read(0, math.prod(tensor.dims))

    def _new_values(self, tensor: TensorProto, name: str) -> Array:
        values = np.ascontiguousarray(self._replaced[name]())
        expected = DTYPES.get(tensor.data_type), tuple(tensor.dims)
        if (values.dtype, values.shape) != expected:
            raise GraphError(
                f"the new values of an initializer are {values.dtype}{list(values.shape)}, "
                f"expected {expected[0]}{list(expected[1])}",
                where=Where(file=self._base.path, tensor=name),
                hint="the adapter was trained on another base model",
            )
        return values

    def _tensor(self, name: str) -> TensorProto:
        tensor = self._base.index.constant(name)
        if tensor is None:
            raise GraphError(
                f"the graph has no initializer named {name!r}",
                where=Where(file=self._base.path, tensor=name),
                hint="give the base graph that the adapters were resolved on",
            )
        return tensor

    def _check_float(self, point: AttachPoint) -> None:
        """What is rounded to a grid has no room for what is added."""
        if point.linear.is_quantized:
            raise GraphError(
                f"nothing can be merged into the weight of {point.linear.node or point.name!r}: "
                "it is quantized",
                where=self._where(point),
                hint="merge into the float graph, and quantize the merged graph anew; or build "
                "without --merge",
            )

    def _check_own(self, point: AttachPoint, tensor: TensorProto) -> None:
        """Only the point's own node may read the weight."""
        linear, where = point.linear, self._where(point)
        other = other_reader(linear, self._base.index)
        if other is not None:
            raise GraphError(
                f"the weight of {linear.label!r} is also read by {other}, which "
                "would change as well",
                where=where,
                hint=_HINT,
            )
        self._check_bytes(tensor, where)

    def _check_bytes(self, tensor: TensorProto, where: Where) -> None:
        other = self._overlapping.get(tensor.name)
        if tensor.data_location == TensorProto.EXTERNAL and other is not None:
            raise GraphError(
                f"{tensor.name!r} and {other!r} lie in the same bytes of a data file, so that both "
                "would change",
                where=where,
                hint=_HINT,
            )

    def _where(self, point: AttachPoint) -> Where:
        linear = point.linear
        return Where(
            file=self._base.path, module=point.name, tensor=linear.weight, node=linear.node or None
        )


def other_reader(linear: LinearNode, index: GraphIndex) -> str | None:
    """Who reads a node's weight beside the node, on the whole way from where it is stored."""
    reader = index.producers[linear.product]
    tensor = reader.input[0 if linear.form is Form.EMBEDDING else 1]
    while True:
        if tensor in index.captured:
            return "a subgraph"
        if tensor in index.outputs:
            return "the outputs of the graph"
        for node in index.consumers.get(tensor, []):
            if node.output[0] != reader.output[0]:
                return f"{node.name or node.output[0]!r}"
        if index.constant(tensor) is not None:
            return None
        reader = index.producers[tensor]
        tensor = reader.input[0]
