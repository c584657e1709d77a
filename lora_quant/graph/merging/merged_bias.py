"""b' = g * b + c for the biases of merged nodes, as short initializers inside the graph file.

Gemm's C, Conv's third input, a bias Add     gets new values; where other nodes read the same
                                             bias, this node gets an initializer of its own
no bias                                      an Add behind the node, if there is a c
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.bias import bias_problem, outcome_of
from lora_quant.graph.attach.constants import FloatConstant, constant_behind
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.branching.points import node_prefix
from lora_quant.graph.branching.vectors import vector_record
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.merging.merged_lines import rounded
from lora_quant.graph.records import AttachPoint, LinearNode, Vector

Array = NDArray[Any]


class MergedBiases:
    """Changes biases one attach point after the other; `apply` ends it."""

    def __init__(self, base: BaseGraph, values: Callable[[TensorProto, str, Where], Array]) -> None:
        """`values(tensor, name, where)` gives all values of a stored tensor, flat."""
        self._file = base.path
        self._index = base.index
        self._edit = GraphEdit(base)
        self._values = values

    def merge(self, point: AttachPoint, g: Array | None, c: Array | None) -> None:
        """Multiply what is added behind W x by g `[out]` and add c `[out]` to it.

        Raises GraphError for a bias that is computed, or is not one value per output feature.
        """
        if g is None and c is None:
            return
        places = self._places(point)
        for number, (node, position, factor) in enumerate(places, start=1):
            # Of two biases, the last one takes c.
            own = c if number == len(places) else None
            if g is not None or own is not None:
                self._change(point, node, position, factor, g, own)
        if not places and c is not None:
            self._add(point, c)

    def apply(self) -> None:
        """Put new initializers and nodes into the graph."""
        self._edit.apply()

    def _places(self, point: AttachPoint) -> list[tuple[NodeProto, int, float]]:
        """Inputs that hold a bias, with what the node multiplies it by."""
        linear = point.linear
        node = self._index.producers[linear.product]
        found = []
        if linear.op in ("Gemm", "Conv") and len(node.input) > 2 and node.input[2]:
            beta = float(attributes(node).get("beta", 1.0)) if linear.op == "Gemm" else 1.0
            if beta != 0.0:
                found.append((node, 2, beta))
        bias = outcome_of(linear, self._index).bias
        if bias is not None:
            found.append((bias.node, bias.position, 1.0))
        return found

    def _change(
        self,
        point: AttachPoint,
        node: NodeProto,
        position: int,
        factor: float,
        g: Array | None,
        c: Array | None,
    ) -> None:
        tensor, size = node.input[position], point.linear.out_features
        where = Where(file=self._file, module=point.name, tensor=tensor, node=node.name or None)
        bias = self._bias(tensor, point.linear, where)
        shape = bias.shape if math.prod(bias.shape) == size else (size,)
        merged = np.zeros(size) + self._values(bias.stored, bias.initializer, where)
        merged = merged if g is None else g * merged
        merged = merged if c is None else merged + c / factor
        values = rounded(merged.reshape(shape), DTYPE_OF[bias.dtype], where)
        if tensor in self._index.initializers and not self._is_shared(tensor):
            self._index.initializers[tensor].CopyFrom(numpy_helper.from_array(values, tensor))
            return
        name = self._edit.claim(f"{node.output[0]}.merged_bias")
        self._edit.constant(numpy_helper.from_array(values, name))
        self._edit.redirect(node.output[0], position, name)

    def _bias(self, tensor: str, linear: LinearNode, where: Where) -> FloatConstant:
        found = constant_behind(tensor, self._index, "its bias")
        hint = "export the graph with constant biases of one axis, or build without --merge"
        if not isinstance(found, FloatConstant):
            raise GraphError(
                f"nothing can be merged into the bias of the node: {found.reason}",
                where=where,
                hint=hint,
            )
        problem = bias_problem(found, linear)
        if problem is not None:
            raise GraphError(problem, where=where, hint=hint)
        return found

    def _is_shared(self, tensor: str) -> bool:
        return self._index.is_shared(tensor) or tensor in self._index.outputs

    def _add(self, point: AttachPoint, c: Array) -> None:
        edit, record = self._edit, vector_record(point, Vector.C)
        where = Where(file=self._file, module=point.name, node=point.linear.node or None)
        values = rounded(c.reshape(record.shape), DTYPE_OF[record.dtype], where)
        edit.constant(numpy_helper.from_array(values, edit.claim(record.name)))
        base_output = edit.claim(f"{point.output}_base")
        edit.rename(point.output, base_output)
        nodes: list[NodeProto] = []
        edit.node(
            nodes,
            "Add",
            [base_output, record.name],
            f"{node_prefix(point)}/lora_c/Add",
            output=point.output,
        )
        edit.behind(point.output, nodes)
