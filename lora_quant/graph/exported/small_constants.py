"""Small constants that decide about structure: the sizes of a Reshape, axes, a scale, a zero bias.

An exporter stores them as initializer, as Constant node with a tensor, or as one with a number or a
list of numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from lora_quant.errors import Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPES
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.files.stored_values import stored_values

# A scale has one value per rank, a Reshape one per axis: anything larger is a weight.
LARGEST = 1 << 16
_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def stored_constant(tensor: str, index: GraphIndex) -> TensorProto | None:
    """The initializer or the value of a Constant node behind `tensor`, numbers among them."""
    found = index.constant(tensor)
    if found is not None:
        return found
    node = index.producers.get(tensor)
    if node is None or node.op_type != "Constant":
        return None
    for attribute, dtype in _NUMBERS.items():
        value = attributes(node).get(attribute)
        if value is not None:
            return numpy_helper.from_array(np.array(value, dtype), tensor)
    return None


def small_values(stored: TensorProto, graph: BaseGraph) -> NDArray[Any] | None:
    """The values of a small constant, flat; None for a large one, or of a type without numbers."""
    count = math.prod(stored.dims)
    if stored.data_type not in DTYPES or count > LARGEST:
        return None
    where = Where(file=graph.path, tensor=stored.name)
    with stored_values(graph.model, stored, where) as read:
        return read(0, count)


def integers_of(
    node: NodeProto, position: int, attribute: str, graph: BaseGraph
) -> list[int] | None:
    """Integers that a node has as attribute, or reads as constant at `position`; else None."""
    given = attributes(node).get(attribute)
    if given is not None:
        return [int(value) for value in given]
    if len(node.input) <= position or not node.input[position]:
        return None
    stored = stored_constant(node.input[position], graph.index)
    values = None if stored is None else small_values(stored, graph)
    return None if values is None else [int(value) for value in values]
