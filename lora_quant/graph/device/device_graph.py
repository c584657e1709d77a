"""A branched graph made ready for a device that has integers and fixed shapes only.

    1  every axis gets its size, what is constant is folded     static_shapes, static_constants
    2  every branch gets a ratio per rank                       rank_ratios
    3  every float tensor gets a grid                           grids, constant_grids
    4  Q/DQ, codes in a data file of its own                    qdq, constant_data
    5  second factors of products of activations are signed     signed_operands

The base graph itself stays as it is: everything is done on a copy without its weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from lora_quant.errors import Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.device.constant_data import QuantizedData
from lora_quant.graph.device.constant_grids import ConstantGrid, constant_grids
from lora_quant.graph.device.device_operators import refuse_fused_operators, replace_operators
from lora_quant.graph.device.grids import BaseGrids
from lora_quant.graph.device.rank_ratios import RankRatio, add_rank_ratios
from lora_quant.graph.device.signed_operands import sign_operands
from lora_quant.graph.device.static_constants import drop_identities, fold_constants
from lora_quant.graph.device.static_shapes import fix_axes
from lora_quant.graph.files.model_file import serialize
from lora_quant.graph.files.rewritten_data import Sink
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import (
    ActivationQdq,
    ExternalCodes,
    WeightQdq,
    quantized_name,
)
from lora_quant.graph.records import BranchedGraph

# Defaults up to this many bytes are inside the graph file.
_INLINE = 1024


@dataclass(frozen=True, eq=False)
class CodedInput:
    """A weight that becomes a graph input of codes; `code` stands for its default everywhere."""

    grid: Grid
    code: int


class QuantizedGraph:
    """The copy; `ratios` are those that it got.

    `copies` tells of tensors that are gone what they were a copy of.
    """

    def __init__(
        self,
        base: BaseGraph,
        branched: BranchedGraph,
        dims: Mapping[str, int],
        keep: Collection[str],
        data_location: str,
    ) -> None:
        """Steps 1 and 2. `keep` are initializers that are not folded: weights with encodings.

        Raises what refuse_fused_operators, fix_axes, fold_constants and add_rank_ratios do.
        """
        self._where = Where(file=base.path)
        self._model = base.model
        self._proto = ModelProto()
        self._proto.CopyFrom(base.model.proto)
        self._data = QuantizedData(base.model, data_location)
        self._inputs: list[str] = []
        refuse_fused_operators(self._proto, self._where)
        fix_axes(self._proto, dims, self._where)
        self.ratios: tuple[RankRatio, ...] = add_rank_ratios(
            self._proto, branched.branches, self._where
        )
        stored = {tensor.name for tensor in self._proto.graph.initializer}
        kept = stored.intersection(keep) | {ratio.weight.name for ratio in self.ratios}
        fold_constants(self._proto, kept, self._where)
        replace_operators(self._proto)
        self.copies = drop_identities(self._proto)

    @property
    def constants(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the float initializers by name."""
        return {
            tensor.name: tuple(tensor.dims)
            for tensor in self._proto.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }

    @property
    def activations(self) -> frozenset[str]:
        """Graph inputs, and what nodes give."""
        graph = self._proto.graph
        produced = {name for node in graph.node for name in node.output if name}
        return frozenset(produced | {value.name for value in graph.input})

    def quantize(
        self,
        activations: Mapping[str, Grid | None],
        weights: Mapping[str, ConstantGrid],
        inputs: Mapping[str, CodedInput],
        dtype: str,
        *,
        wide_products: bool,
    ) -> None:
        """Steps 3 to 5. `dtype` is that of grids which are computed.

        activations: grids by tensor, None for one that stays float. weights: those of constants.
        inputs: what use cases replace. wide_products: whether the device multiplies 16 by 16 bits,
        else step 5 is left out. Raises EncodingsError for tensors whose range nothing tells,
        GraphError for what cannot be quantized.
        """
        given = dict(activations)
        for copy, source in self.copies.items():
            if copy in given:
                given.setdefault(source, given[copy])
        base = BaseGrids(self._proto, given, self._where)
        known = {**weights, **{n: ConstantGrid.whole(one.grid) for n, one in inputs.items()}}
        constants = constant_grids(self._model, base, known, dtype)
        stored = {tensor.name: tensor for tensor in self._proto.graph.initializer}
        # The base's own tensors are not copied: they may be all of its weights.
        unchanged = {tensor.name: tensor for tensor in self._model.proto.graph.initializer}
        coded: dict[str, WeightQdq] = {}
        for name, made in constants.items():
            if name not in inputs:
                source = unchanged[name] if name in unchanged else _copy(stored[name])
                coded[name] = WeightQdq(made.grid, self._data.constant(source, made))
        dressed = {name: ActivationQdq(grid) for name, grid in base.activations().items()}
        coded.update(self._coded_inputs(inputs, stored))
        insert_qdq(self._proto, activations=dressed, weights=coded, where=self._where)
        if wide_products:
            sign_operands(self._proto, self._where)
        self._inputs = [quantized_name(name) for name in inputs]
        self._data.take_over(self._proto)

    def default(self, name: str) -> None:
        """Give a float graph input zeros as its default."""
        value = next(v for v in self._proto.graph.input if v.name == name)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        tensor = self._proto.graph.initializer.add()
        tensor.name, tensor.data_type = name, TensorProto.FLOAT
        tensor.dims.extend(shape)
        tensor.raw_data = bytes(4 * math.prod(shape))
        self._inputs.append(name)

    def graph_bytes(self) -> bytes:
        """The bytes of the graph file. Raises GraphError above protobuf's limit of 2 GiB."""
        return serialize(self._proto, self._where)

    def graph_bytes_without_defaults(self) -> bytes:
        """The same graph whose inputs have no defaults, as the device's compiler needs it."""
        bare = ModelProto()
        bare.CopyFrom(self._proto)
        kept = [tensor for tensor in bare.graph.initializer if tensor.name not in self._inputs]
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(kept)
        return serialize(bare, self._where)

    def with_defaults(self, compiled: bytes) -> bytes:
        """The graph that the device's compiler made of it, with the defaults of its inputs."""
        proto = ModelProto.FromString(compiled)
        own = {tensor.name: tensor for tensor in self._proto.graph.initializer}
        for name in self._inputs:
            proto.graph.initializer.add().CopyFrom(own[name])
        return serialize(proto, self._where)

    def write_data(self, sink: Sink) -> None:
        """The data file. Raises what reading the base's weights does."""
        self._data.write(sink)

    def _coded_inputs(
        self, inputs: Mapping[str, CodedInput], stored: Mapping[str, TensorProto]
    ) -> dict[str, WeightQdq]:
        """Large zeros share one block of the data file; other defaults are in the graph."""
        sizes = {
            name: math.prod(stored[name].dims) * np.dtype(one.grid.dtype).itemsize
            for name, one in inputs.items()
        }
        large = {n for n, size in sizes.items() if size > _INLINE and inputs[n].code == 0}
        zeros = self._data.zeros(max(sizes[name] for name in large)) if large else 0
        found: dict[str, WeightQdq] = {}
        for name, one in inputs.items():
            shape = tuple(stored[name].dims)
            codes = (
                ExternalCodes(self._data.location, zeros, shape)
                if name in large
                else np.full(shape, one.code, one.grid.dtype)
            )
            found[name] = WeightQdq(one.grid, codes, overridable_values=True)
        return found


def _copy(tensor: TensorProto) -> TensorProto:
    copied = TensorProto()
    copied.CopyFrom(tensor)
    return copied
