"""Q/DQ in a graph: activations on a grid, weights stored as codes.

    node -> t             =>  node -> t_raw -> Q -> t_quantized -> DQ -> t
    input or constant x   =>  x -> Q -> x_quantized -> DQ -> x_dequantized, for all that read x
    weight w              =>  w_quantized -> DQ -> w

Scale and zero point are `<tensor>_scale` and `<tensor>_zero_point`, constants or graph inputs with
a default. Consumers and graph outputs keep the names that they know. Scales are float32: a tensor
of float16 or bfloat16 is cast around its Q/DQ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from lora_quant.errors import NOWHERE, GraphError, Where
from lora_quant.graph.files.element_types import ELEMENTS, FLOAT_TYPES, type_name
from lora_quant.graph.files.graph_index import GraphIndex, build_index
from lora_quant.graph.files.model_file import default_opset
from lora_quant.graph.files.node_places import place_nodes
from lora_quant.graph.files.walk import iter_graphs
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq_operators import (
    MICROSOFT,
    Sizes,
    domain_for,
    fill_tensor,
    grid_sizes,
    import_microsoft,
    input_record,
    input_value,
    node_attributes,
)
from lora_quant.graph.quantized.qdq_records import (
    ActivationQdq,
    ExternalCodes,
    OverridableInput,
    Part,
    WeightQdq,
    quantized_name,
    scale_name,
    zero_point_name,
)
from lora_quant.graph.quantized.zero_codes import zero_codes

_QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def insert_qdq(
    proto: ModelProto,
    *,
    activations: Mapping[str, ActivationQdq],
    weights: Mapping[str, WeightQdq],
    where: Where = NOWHERE,
) -> tuple[OverridableInput, ...]:
    """Edit `proto` in place; returns what became a graph input, weights first, in their order.

    Raises GraphError, the graph being as it was: for a tensor that the graph does not have, that is
    not float or quantized already, for a name that is taken, and for a grid that the graph's opset
    cannot express.
    """
    insertion = _Insertion(proto, where)
    for name, weight in weights.items():
        insertion.weight(name, weight)
    for name, activation in activations.items():
        insertion.activation(name, activation)
    insertion.apply()
    return tuple(insertion.made)


class _Insertion:
    """Everything is collected first, so that an error leaves the graph as it was."""

    def __init__(self, proto: ModelProto, where: Where) -> None:
        self._proto = proto
        self._where = where
        self._index: GraphIndex = build_index(proto)
        self._opset = default_opset(proto)
        self._taken = {*self._index.names, *self._index.values, *self._index.initializers}
        self._inputs = {value.name for value in proto.graph.input}
        self.made: list[OverridableInput] = []
        self._front: list[NodeProto] = []
        self._behind: dict[int, list[NodeProto]] = defaultdict(list)
        self._renamed: dict[str, str] = {}
        self._redirected: dict[str, str] = {}
        self._replaced: dict[str, tuple[Grid, NDArray[Any] | ExternalCodes, Sizes]] = {}
        self._new_inputs: list[ValueInfoProto] = []
        self._constants: list[TensorProto] = []
        self._values: list[ValueInfoProto] = []
        self._microsoft = False

    def weight(self, name: str, asked: WeightQdq) -> None:
        """Plan codes and DQ in place of an initializer."""
        tensor = self._index.initializers.get(name)
        if tensor is None:
            raise self._refuse(name, "the graph has no initializer of this name to quantize")
        dtype = self._float_type(name, tensor.data_type)
        self._check_unquantized(name)
        shape = tuple(tensor.dims) if asked.shape is None else asked.shape
        codes = zero_codes(asked.grid, shape) if asked.codes is None else asked.codes
        dims: Sizes = codes.shape if asked.dims is None else asked.dims
        quantized = self._claim(quantized_name(name), name)
        if asked.overridable_values:
            self._input(quantized, asked.grid.dtype, dims, name, "values")
        self._replaced[name] = (asked.grid, codes, dims)
        sizes, is_open = grid_sizes(asked.grid, dims), asked.overridable_grid
        parameters = self._parameters(name, asked.grid, sizes, overridable=is_open)
        nodes: list[NodeProto] = []
        self._dequantize(nodes, name, asked.grid, [quantized, *parameters], name, dtype)
        self._front += nodes

    def activation(self, name: str, asked: ActivationQdq) -> None:
        """Plan Q and DQ behind the node that produces a tensor, or behind a graph input."""
        produced = name in self._index.producers
        if not (produced or name in self._inputs or name in self._index.initializers):
            raise self._refuse(name, "the graph has no tensor of this name to quantize")
        self._check_unquantized(name)
        known = self._index.values.get(name)
        stored = self._index.initializers.get(name)
        element = ELEMENTS[asked.dtype]
        if stored is not None:
            element = stored.data_type
        elif known is not None and known.type.tensor_type.elem_type:
            element = known.type.tensor_type.elem_type
        dtype = self._float_type(name, element)
        source, result = name, name
        if produced:
            source = self._renamed[name] = self._claim(f"{name}_raw", name)
            self._value(source, known, element)
        else:
            result = self._redirected[name] = self._claim(f"{name}_dequantized", name)
            self._value(result, known, element)
        quantized = self._claim(quantized_name(name), name)
        self._value(quantized, known, ELEMENTS[asked.grid.dtype])
        parameters = self._parameters(name, asked.grid, (1,), overridable=asked.overridable)
        nodes: list[NodeProto] = []
        if dtype != "float32":
            wide = self._claim(f"{name}_raw_float32", name)
            self._cast(nodes, source, wide, name, "float32")
            source = wide
        self._node(nodes, "QuantizeLinear", [source, *parameters], quantized, name, asked.grid)
        self._dequantize(nodes, name, asked.grid, [quantized, *parameters], result, dtype)
        if produced:
            self._behind[self._index.positions[name]] += nodes
        else:
            self._front += nodes

    def apply(self) -> None:
        """Make the changes, in one walk over the nodes."""
        graph = self._proto.graph
        for tensor, new in self._renamed.items():
            outputs = self._index.producers[tensor].output
            outputs[list(outputs).index(tensor)] = new
        if self._redirected:
            self._redirect()
        for name, (grid, codes, dims) in self._replaced.items():
            fill_tensor(self._index.initializers[name], quantized_name(name), grid.dtype, codes)
            self._declare(name, dims)
        kept = [value for value in graph.input if value.name not in self._replaced]
        if len(kept) < len(graph.input):
            del graph.input[:]
            graph.input.extend(kept)
        graph.input.extend(self._new_inputs)
        graph.initializer.extend(self._constants)
        graph.value_info.extend(self._values)
        place_nodes(graph, self._front, self._behind)
        if self._microsoft:
            import_microsoft(self._proto)

    def _redirect(self) -> None:
        for graph in iter_graphs(self._proto.graph):
            for node in graph.node:
                for position, name in enumerate(node.input):
                    if name in self._redirected:
                        node.input[position] = self._redirected[name]

    def _declare(self, weight: str, dims: Sizes) -> None:
        """The graph may tell the shape of what was an initializer; it is an activation now."""
        known = self._index.values.get(weight)
        if known is not None and weight not in self._inputs:
            element = known.type.tensor_type.elem_type
            known.CopyFrom(helper.make_tensor_value_info(weight, element, list(dims)))

    def _parameters(self, tensor: str, grid: Grid, dims: Sizes, *, overridable: bool) -> list[str]:
        """The names of scale and zero point, which are stored; int32 has no zero point."""
        parts: list[tuple[str, str, NDArray[Any], Part]] = [
            (scale_name(tensor), "float32", grid.scale.astype(np.float32, copy=False), "scale")
        ]
        if grid.dtype != "int32":
            parts.append((zero_point_name(tensor), grid.dtype, grid.zero_point, "zero_point"))
        for name, dtype, values, part in parts:
            self._claim(name, tensor)
            if overridable:
                self._input(name, dtype, dims, tensor, part)
            elif grid.axis is None:
                # The spelling of the standard: engines tell per tensor from per channel by it.
                values = values.reshape(())
            constant = TensorProto()
            fill_tensor(constant, name, dtype, values)
            self._constants.append(constant)
        return [name for name, *_ in parts]

    def _dequantize(
        self,
        nodes: list[NodeProto],
        tensor: str,
        grid: Grid,
        inputs: list[str],
        result: str,
        dtype: str,
    ) -> None:
        if dtype == "float32":
            self._node(nodes, "DequantizeLinear", inputs, result, tensor, grid)
            return
        wide = self._claim(f"{tensor}_dequantized_float32", tensor)
        self._node(nodes, "DequantizeLinear", inputs, wide, tensor, grid)
        self._cast(nodes, wide, result, tensor, dtype)

    def _cast(
        self, nodes: list[NodeProto], source: str, result: str, tensor: str, dtype: str
    ) -> None:
        name = self._claim(f"{source}_Cast", tensor)
        nodes.append(helper.make_node("Cast", [source], [result], name=name, to=ELEMENTS[dtype]))

    def _node(
        self,
        nodes: list[NodeProto],
        operator: str,
        inputs: list[str],
        output: str,
        tensor: str,
        grid: Grid,
    ) -> None:
        domain = domain_for(grid, self._opset, replace(self._where, tensor=tensor))
        self._microsoft = self._microsoft or domain == MICROSOFT
        name = self._claim(f"{tensor}_{operator}", tensor)
        attributes = node_attributes(grid)
        nodes.append(
            helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)
        )

    def _input(self, name: str, dtype: str, dims: Sizes, of: str, part: Part) -> None:
        self._new_inputs.append(input_value(name, dtype, dims))
        self.made.append(OverridableInput(input_record(name, dtype, dims), of, part))

    def _value(self, name: str, like: ValueInfoProto | None, element: int) -> None:
        if like is None:
            return
        value = ValueInfoProto(name=name)
        value.type.CopyFrom(like.type)
        value.type.tensor_type.elem_type = element
        self._values.append(value)

    def _claim(self, name: str, tensor: str) -> str:
        if name in self._taken:
            raise self._refuse(
                tensor,
                f"its Q/DQ needs the name {name!r}, which the graph has already",
                "rename that tensor or node in the base graph",
            )
        self._taken.add(name)
        return name

    def _float_type(self, name: str, element: int) -> str:
        found = FLOAT_TYPES.get(element)
        if found is None:
            raise self._refuse(
                name,
                f"a tensor of type {type_name(element)} cannot be quantized, expected float32, "
                "float16 or bfloat16",
            )
        return found

    def _check_unquantized(self, name: str) -> None:
        producer = self._index.producers.get(name)
        readers = self._index.consumers.get(name, [])
        if (producer is not None and producer.op_type == "DequantizeLinear") or any(
            node.op_type in _QUANTIZERS and node.input[0] == name for node in readers
        ):
            raise self._refuse(
                name,
                "it has Q/DQ nodes in the graph already",
                "leave its encoding out, or give the graph before Q/DQ was inserted",
            )

    def _refuse(self, tensor: str, message: str, hint: str | None = None) -> GraphError:
        hint = hint or "check that the encodings belong to this graph"
        return GraphError(message, where=replace(self._where, tensor=tensor), hint=hint)
