"""A copy of a branched graph, some of whose tensors become graph inputs with a default.

    initializer "w"   ->   initializer "w" (the default) and a graph input "w"

ONNX Runtime lets an adapter, or the application, replace such an input at every run. An axis whose
size differs from run to run has a name instead of a size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from lora_quant.errors import Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPE_OF, ELEMENTS
from lora_quant.graph.files.model_file import default_opset, serialize
from lora_quant.graph.files.node_maker import NodeMaker
from lora_quant.graph.files.node_places import place_nodes
from lora_quant.graph.files.zero_weights import ZeroWeights
from lora_quant.graph.records import TensorRecord

Shape = Sequence[int | str]

# Zeros up to this many bytes stay inside the graph file.
_INLINE = 4096


class OpenGraph(NodeMaker):
    """The copy, with its lookup tables; `inputs` are the inputs with a default, as they were made.

    Added and removed parts are collected, and put in place by `apply`. `zeros` are defaults that
    are too large for the graph file of a base whose weights are outside of it.
    """

    def __init__(self, base: BaseGraph) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(base.model.proto)
        graph = self.proto.graph
        self.opset = default_opset(self.proto)
        self.zeros = ZeroWeights(external=base.zeros.external)
        self.inputs: list[TensorRecord] = []
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.values = {value.name: value for value in graph.value_info}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._graph_inputs = {value.name: value for value in graph.input}
        tensors = {*base.index.names, *self.producers, *self.initializers, *self._graph_inputs}
        super().__init__(
            {*tensors, *(node.name for node in graph.node)},
            base.path,
            "rename it in the base graph, or choose another --alpha-name",
        )
        self._front: list[NodeProto] = []
        self._dropped: set[str] = set()

    def overridable(
        self, name: str, dtype: str, shape: Shape, default: NDArray[Any] | None = None
    ) -> TensorRecord:
        """Make `name` an input of that type, whose default is `default`, or what it is by now.

        It may be there already, as an initializer or as an input. Axes that `shape` names are -1 in
        the record.
        """
        if default is not None:
            self.constant(name, default)
        value = self._graph_inputs.get(name)
        if value is None:
            value = self._graph_inputs[name] = self.proto.graph.input.add()
        value.CopyFrom(helper.make_tensor_value_info(name, ELEMENTS[dtype], list(shape)))
        sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        self.inputs.append(TensorRecord(name, sizes, dtype))
        return self.inputs[-1]

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """An initializer of these values; what it was before is forgotten."""
        tensor = TensorProto(name=name, data_type=ELEMENTS[values.dtype.name], dims=values.shape)
        tensor.raw_data = np.ascontiguousarray(values).tobytes()
        self._put(tensor)
        return name

    def zero(self, record: TensorRecord) -> None:
        """An initializer of zeros, outside of the graph file if it is large and the base's are."""
        size = math.prod(record.shape) * DTYPE_OF[record.dtype].itemsize
        inline = ZeroWeights(external=False)
        self._put((self.zeros if size > _INLINE else inline).tensor(record))

    def reshape(self, record: TensorRecord) -> None:
        """An initializer of this shape and no values yet."""
        self._put(
            TensorProto(name=record.name, data_type=ELEMENTS[record.dtype], dims=record.shape)
        )

    def front(self, nodes: Iterable[NodeProto]) -> None:
        """Place nodes at the start of the graph, behind those that were placed there before."""
        self._front.extend(nodes)

    def resize_input(self, name: str, axis: int, size: int) -> None:
        """Give one axis of a graph input another size."""
        self._graph_inputs[name].type.tensor_type.shape.dim[axis].dim_value = size

    def drop(self, names: Iterable[str]) -> None:
        """Remove initializers, and nodes by what they produce; nothing may read them any more."""
        self._dropped.update(names)
        self._taken.difference_update(self._dropped)

    def apply(self) -> None:
        """Put the added parts in place and take the dropped ones out."""
        graph = self.proto.graph
        for parts in (graph.node, graph.initializer):
            for position in reversed(range(len(parts))):
                part = parts[position]
                names = part.output if isinstance(part, NodeProto) else (part.name,)
                if not self._dropped.isdisjoint(names):
                    del parts[position]
        place_nodes(graph, self._front, {})
        self._dropped.clear()
        self._front.clear()

    def data(self, zeros_location: str) -> bytes:
        """The bytes of the graph file; large zeros read `zeros_location`.

        Raises GraphError above protobuf's limit of 2 GiB.
        """
        self.zeros.place(self.proto.graph, list(self.initializers), zeros_location)
        return serialize(self.proto, Where(file=self._file))

    def _put(self, tensor: TensorProto) -> None:
        stored = self.initializers.get(tensor.name)
        if stored is None:
            stored = self.initializers[tensor.name] = self.proto.graph.initializer.add()
        stored.CopyFrom(tensor)
