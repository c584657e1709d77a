"""Changes to a graph, collected first and made at once, so that an error leaves it as it was.

Nodes are placed before or behind a node of the base, or in front of all. An output of the base may
get a new name, so that an added node can take over the old one; an input may be read from an added
tensor. Nothing of the graph is touched before `apply`.
"""

from __future__ import annotations

from collections import defaultdict

from onnx import NodeProto, TensorProto, ValueInfoProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.node_maker import NodeMaker
from lora_quant.graph.files.node_places import place_nodes
from lora_quant.graph.files.zero_weights import one_weights
from lora_quant.graph.records import TensorRecord


class GraphEdit(NodeMaker):
    """What is going to be added to the graph of `base`."""

    def __init__(self, base: BaseGraph) -> None:
        self.index = base.index
        self.opset = base.model.opset
        self._graph = base.model.proto.graph
        self._zeros = base.zeros
        # A graph that was edited already has more than its index says.
        stored = (tensor.name for tensor in base.model.proto.graph.initializer)
        super().__init__(
            {*base.index.names, *stored},
            base.path,
            "give the base graph without LoRA branches, or choose another --alpha-name; if the "
            "graph is final as it is, build with --no-create-lora-graph",
        )
        self._inputs: list[ValueInfoProto] = []
        self._weights: list[tuple[TensorRecord, bool]] = []
        self._constants: list[TensorProto] = []
        self._values: list[ValueInfoProto] = []
        self._front: list[NodeProto] = []
        self._before: dict[int, list[NodeProto]] = defaultdict(list)
        self._behind: dict[int, list[NodeProto]] = defaultdict(list)
        self._renamed: dict[str, str] = {}
        self._redirected: list[tuple[NodeProto, int, str]] = []

    def refuse(self, message: str, *, node: str, module: str, hint: str) -> GraphError:
        """The error for an attach point that cannot have what it is asked to have."""
        return GraphError(
            message, where=Where(file=self._file, module=module, node=node or None), hint=hint
        )

    def front(self, nodes: list[NodeProto]) -> None:
        """Place nodes at the start of the graph."""
        self._front += nodes

    def before(self, tensor: str, nodes: list[NodeProto]) -> None:
        """Place nodes in front of the node that produces `tensor`."""
        self._before[self.index.positions[tensor]] += nodes

    def behind(self, tensor: str, nodes: list[NodeProto]) -> None:
        """Place nodes behind the node that produces `tensor`."""
        self._behind[self.index.positions[tensor]] += nodes

    def weight(self, record: TensorRecord, *, ones: bool = False) -> TensorRecord:
        """Add an updatable initializer of zeros, or of ones; its name is claimed here."""
        self.claim(record.name)
        self._weights.append((record, ones))
        return record

    def constant(self, tensor: TensorProto) -> None:
        """Add an initializer whose name is claimed."""
        self._constants.append(tensor)

    def input(self, value: ValueInfoProto) -> None:
        """Add a graph input whose name is claimed."""
        self._inputs.append(value)

    def rename(self, tensor: str, new: str) -> None:
        """Give an output of the base the name `new`; its quantization annotation goes along."""
        self._renamed[tensor] = new

    def redirect(self, tensor: str, position: int, new: str) -> None:
        """Let the node that produces `tensor` read `new` as its input number `position`."""
        self._redirected.append((self.index.producers[tensor], position, new))

    def value(
        self, name: str, like: str, axis: int, size: int | None, axes: int | None = None
    ) -> None:
        """Tell that `name` is of the type of the base's tensor `like`, if the graph tells that.

        `size` replaces the size of `axis`. A tensor that has not `axes` axes is passed over.
        """
        known = self.index.values.get(like)
        if known is None or not known.type.tensor_type.HasField("shape"):
            return
        found = len(known.type.tensor_type.shape.dim)
        if found == 0 or (axes is not None and found != axes):
            return
        value = ValueInfoProto(name=name)
        value.type.CopyFrom(known.type)
        if size is not None:
            dim = value.type.tensor_type.shape.dim[axis]
            dim.Clear()
            dim.dim_value = size
        self._values.append(value)

    def apply(self) -> None:
        """Make the changes."""
        graph = self._graph
        for tensor, new in self._renamed.items():
            producer = self.index.producers[tensor]
            producer.output[list(producer.output).index(tensor)] = new
        for node, position, new in self._redirected:
            node.input[position] = new
        graph.input.extend(self._inputs)
        graph.initializer.extend(
            one_weights(record) if ones else self._zeros.tensor(record)
            for record, ones in self._weights
        )
        graph.initializer.extend(self._constants)
        graph.value_info.extend(self._values)
        self._copy_annotations()
        place_nodes(graph, self._front, self._behind, self._before)

    def _copy_annotations(self) -> None:
        for annotation in list(self._graph.quantization_annotation):
            if annotation.tensor_name in self._renamed:
                copy = self._graph.quantization_annotation.add()
                copy.CopyFrom(annotation)
                copy.tensor_name = self._renamed[annotation.tensor_name]
