"""The base graph as the reference reads it: nodes, constants and biases, through onnx-graphsurgeon.

A second reader beside the one of `lora_quant.graph`: it shares no code with it, so that each is
checked by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.reference.dequantized_view import dequantized, from_blocks, rounded

_NOTHING: Mapping[str, Array] = MappingProxyType({})
_LAYOUT = ("Transpose", "Identity", "Cast")
_GRIDS = ("DequantizeLinear", "QuantizeLinear")
_PACKED = "MatMulNBits"
_BIAS = {"Gemm": 2, "Conv": 2, _PACKED: 5}
"""The number of the input that is a bias."""


class BaseView:
    """One base graph in graphsurgeon; what it tells stays as it was while the graph is edited."""

    def __init__(self, proto: ModelProto, path: Path) -> None:
        """`proto` is without the external data, which lies beside `path`."""
        import onnx_graphsurgeon as gs

        self._gs = gs
        self.path = path
        self.graph = gs.import_onnx(proto)
        self._by_name = {out.name: node for node in self.graph.nodes for out in node.outputs}
        self._by_name.update((node.name, node) for node in self.graph.nodes if node.name)
        self._nodes: dict[str, LinearView] = {}
        self._opened: dict[str, Array] = {}

    def linear(self, name: str) -> LinearView:
        """The node of that name, or that gives a tensor of that name; always the same object.

        Raises VerificationError if there is none.
        """
        if name not in self._nodes:
            node = self._by_name.get(name)
            if node is None:
                raise VerificationError(
                    f"the base graph has no node {name!r}",
                    where=Where(file=self.path, node=name),
                    hint="the pack was built from another base graph",
                )
            self._nodes[name] = LinearView(self, name, node)
        return self._nodes[name]

    def open_constant(self, tensor: Any) -> Array:
        """Make an input of a constant, in the graph; returns what it held."""
        values = self._opened.get(tensor.name)
        if values is None:
            values = self.value(tensor)
            variable = self._gs.Variable(tensor.name, values.dtype, values.shape)
            for node in list(tensor.outputs):
                for position, one in enumerate(node.inputs):
                    if one is tensor:
                        node.inputs[position] = variable
            tensor.inputs.clear()
            self.graph.inputs.append(variable)
            self._opened[tensor.name] = values
        return values

    def is_output(self, tensor: Any) -> bool:
        """Whether a tensor is an output of the graph."""
        return any(tensor is output for output in self.graph.outputs)

    def behind_grid(self, tensor: Any) -> Any:
        """What a Q/DQ pair gives that alone reads `tensor`, else the tensor itself."""
        found = tensor
        for op in _GRIDS[::-1]:
            if len(found.outputs) != 1 or self.is_output(found) or found.outputs[0].op != op:
                return tensor
            found = found.outputs[0].outputs[0]
        return found

    def is_constant(self, tensor: Any) -> bool:
        """Whether `value` can tell what a tensor holds."""
        while not (hasattr(tensor, "_values") or tensor.name in self._opened):
            if not tensor.inputs:
                return False
            producer = tensor.inputs[0]
            if producer.op == "Constant":
                return "value" in producer.attrs
            if producer.op in _GRIDS:
                if not all(self.is_constant(one) for one in producer.inputs[1:] if one.name):
                    return False
            elif producer.op not in _LAYOUT:
                return False
            tensor = producer.inputs[0]
        return True

    def is_on_grid(self, tensor: Any) -> bool:
        """Whether a constant tensor passes through a DequantizeLinear."""
        while tensor.inputs and tensor.inputs[0].op != "Constant":
            if tensor.inputs[0].op == "DequantizeLinear":
                return True
            tensor = tensor.inputs[0].inputs[0]
        return False

    def value(self, tensor: Any, changed: Mapping[str, Array] = _NOTHING) -> Array:
        """What a constant tensor holds, through Transpose, Identity, Cast and Q/DQ.

        `changed` holds other values for tensors, by name. Raises VerificationError for a tensor
        that is computed.
        """
        for known in (changed, self._opened):
            if tensor.name in known:
                return known[tensor.name]
        if hasattr(tensor, "_values"):
            stored = getattr(tensor._values, "tensor", None)
            if stored is None:
                return np.asarray(tensor.values)
            return np.asarray(numpy_helper.to_array(stored, base_dir=str(self.path.parent)))
        if not self.is_constant(tensor):
            raise VerificationError(
                f"the value of {tensor.name!r} is computed, expected a constant",
                where=Where(file=self.path, tensor=tensor.name),
                hint="the pack was built from another base graph",
            )
        producer = tensor.inputs[0]
        if producer.op == "Constant":
            return self.value(producer.attrs["value"], changed)
        value = self.value(producer.inputs[0], changed)
        if producer.op in _GRIDS:
            return self._on_grid(producer, value)
        if producer.op == "Transpose":
            return value.transpose(producer.attrs.get("perm"))
        return value.astype(_cast_type(producer)) if producer.op == "Cast" else value

    def _on_grid(self, node: Any, value: Array) -> Array:
        """What a QuantizeLinear or DequantizeLinear makes of `value`."""
        scale, zero, *_ = (*map(self.value, (one for one in node.inputs[1:] if one.name)), None)
        place = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
        if node.op == "QuantizeLinear":
            codes = _numpy_type(int(node.attrs.get("output_dtype", 0)) or onnx.TensorProto.UINT8)
            return rounded(value, scale, zero, codes if zero is None else zero.dtype, *place)
        return dequantized(value, scale, zero, *place).astype(self._type_given(node))

    def _type_given(self, node: Any) -> np.dtype[Any]:
        """The type that a DequantizeLinear gives."""
        element = int(node.attrs.get("output_dtype", 0))
        return _numpy_type(element) if element else self.dtype(node.inputs[1])

    def shape(self, tensor: Any) -> tuple[int, ...]:
        """The shape of a constant tensor, without reading it."""
        if tensor.name in self._opened:
            return self._opened[tensor.name].shape
        if hasattr(tensor, "_values"):
            return tuple(int(size) for size in tensor.shape)
        producer = tensor.inputs[0]
        if producer.op == "Constant":
            return self.shape(producer.attrs["value"])
        shape = self.shape(producer.inputs[0])
        if producer.op != "Transpose":
            return shape
        axes = producer.attrs.get("perm", range(len(shape))[::-1])
        return tuple(shape[axis] for axis in axes)

    def dtype(self, tensor: Any) -> np.dtype[Any]:
        """The type of a constant tensor, without reading it."""
        opened = self._opened.get(tensor.name)
        if opened is not None:
            kept: np.dtype[Any] = opened.dtype
            return kept
        if hasattr(tensor, "_values"):
            stored: np.dtype[Any] = np.dtype(tensor.dtype)
            return stored
        producer = tensor.inputs[0]
        if producer.op == "DequantizeLinear":
            return self._type_given(producer)
        if producer.op == "Cast":
            return _cast_type(producer)
        is_stored = producer.op == "Constant"
        return self.dtype(producer.attrs["value"] if is_stored else producer.inputs[0])


class LinearView:
    """A node that computes W x: MatMul, Gemm, Conv, MatMulNBits, or a Gather of rows.

    `source` is the tensor that holds W, and `position` that of its input. Gemm multiplies W x by
    `gain`. `biases` are the constants that the module adds to W x, each with its factor. All of it
    is read when the object is made. `shape` is `(out, in / groups, *kernel)`, and W is dequantized
    if it `is_quantized`; only a MatMulNBits `is_packed`.
    """

    def __init__(self, view: BaseView, name: str, node: Any) -> None:
        """Raises VerificationError if W is not a constant."""
        self.name = name
        self.node = node
        self.op = str(node.op)
        self.position = 0 if self.op == "Gather" else 1
        self.source = node.inputs[self.position]
        if not view.is_constant(self.source):
            raise VerificationError(
                f"the weight of node {name!r} is computed, expected a constant",
                where=Where(file=view.path, node=name, tensor=self.source.name),
                hint="the pack was built from another base graph",
            )
        self.is_out_in = self.op == "Conv" or bool(node.attrs.get("transB", 0))
        self.is_packed = self.op == _PACKED
        self.is_quantized = self.is_packed or view.is_on_grid(self.source)
        self.groups = int(node.attrs.get("group", 1)) if self.op == "Conv" else 1
        self.gain = float(node.attrs.get("alpha", 1.0)) if self.op == "Gemm" else 1.0
        self._view = view
        if self.is_packed:
            self.dtype = view.dtype(node.inputs[2])
            self.shape: tuple[int, ...] = int(node.attrs["N"]), int(node.attrs["K"])
            self._packed = (dict(node.attrs), list(node.inputs[1:5]))
        else:
            self.dtype = view.dtype(self.source)
            shape = view.shape(self.source)
            self.shape = shape if self.is_out_in else shape[::-1]
        self.biases = tuple(self._find_biases())

    @property
    def is_embedding(self) -> bool:
        """Whether the inputs are indices."""
        return self.op == "Gather"

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of one value per output feature, as it broadcasts to the product."""
        out, *rest = self.shape
        return (1, out, *(1 for _ in rest[1:])) if self.op == "Conv" else (out,)

    def weight(self, changed: Mapping[str, Array] = _NOTHING) -> Array:
        """W in the type that the node computes with."""
        if self.is_packed:
            attributes, tensors = self._packed
            values = [self._view.value(one, changed) if one.name else None for one in tensors]
            where = Where(file=self._view.path, node=self.name)
            return from_blocks(attributes, values, where)
        value = self._view.value(self.source, changed)
        return value if self.is_out_in else value.T

    def ungrouped(self, changed: Mapping[str, Array] = _NOTHING) -> Array:
        """W `[out, in, *kernel]` for the same convolution in one group, zero between the groups."""
        weight = self.weight(changed)
        return weight if self.groups == 1 else spread(weight, self.groups)

    def bias(self, changed: Mapping[str, Array] = _NOTHING) -> NDArray[np.float64]:
        """All that is added to W x in the base, `[out]`; a Gemm's W x is multiplied before."""
        total = np.zeros(self.shape[0])
        for tensor, factor in self.biases:
            total += factor * self._view.value(tensor, changed).astype(np.float64).reshape(-1)
        return total

    def _find_biases(self) -> list[tuple[Any, float]]:
        found = []
        inputs = self.node.inputs
        own = inputs[_BIAS[self.op] :][:1] if self.op in _BIAS else []
        if own and own[0].name:
            beta = float(self.node.attrs.get("beta", 1.0)) if self.op == "Gemm" else 1.0
            found.append((own[0], beta))
        product = self._view.behind_grid(self.node.outputs[0])
        alone = len(product.outputs) == 1 and not self._view.is_output(product)
        if alone and product.outputs[0].op == "Add" and not self.is_embedding:
            others = (one for one in product.outputs[0].inputs if one is not product)
            found += [(t, 1.0) for t in others if self._view.is_constant(t) and self._fits(t)]
        return found

    def _fits(self, tensor: Any) -> bool:
        """Whether a constant is one value per output feature: others are no bias of the module."""
        shape = self._view.shape(tensor)
        return shape in (self.value_shape, self.value_shape[int(self.op == "Conv") :])


def spread(weight: Array, groups: int) -> Array:
    """`[out, in / groups, ...]` of a grouped product -> `[out, in, ...]` of the same in one."""
    out, inner = weight.shape[:2]
    whole = np.zeros((out, inner * groups, *weight.shape[2:]), weight.dtype)
    rows = out // groups
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        whole[own, group * inner : (group + 1) * inner] = weight[own]
    return whole


def _cast_type(node: Any) -> np.dtype[Any]:
    return _numpy_type(int(node.attrs["to"]))


def _numpy_type(element: int) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
