"""How the strength of the adapters reaches the rank axis of every branch.

    slot layout:  alpha [slots] (graph input),  s = alpha @ E,  E [slots, R] (updatable weight)
    rank layout:  alpha [R] (graph input) is s itself; the host expands strengths to ranks

E[i, ranks of slot i] = lora_alpha_i / rank_i, zero elsewhere. Computed once in float32 and shared;
cast to the dtype of the branches, tiled for fused projections, reshaped to [1, R, 1, 1] for
convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lora_quant.graph.records import Form, ScaleRecord, TensorRecord
from lora_quant.graph.weights import ZeroWeights

_ELEMENT = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class ScaleBuilder:
    """Collects the nodes that make s in each dtype, tiling and layout that branches ask for."""

    def __init__(
        self,
        *,
        alpha_name: str,
        layout: Literal["slot", "rank"],
        max_rank: int,
        slot_count: int,
        conv_ranks: frozenset[int],
        only_conv: bool,
        claim: Callable[[str], str],
    ) -> None:
        """`conv_ranks` are the numbers of spatial axes among the convolutions."""
        self.nodes: list[NodeProto] = []
        self._alpha_name = alpha_name
        self._max_rank = max_rank
        self._claim = claim
        self._shapes: dict[str, TensorProto] = {}
        self._made: dict[tuple[str, int, int], str] = {}
        self._base_axes = 0
        if layout == "slot":
            self.alpha = TensorRecord(alpha_name, (slot_count,), "float32")
            self.expansion: TensorRecord | None = TensorRecord(
                claim(f"{alpha_name}.expansion"), (slot_count, max_rank), "float32"
            )
            source = self._add("MatMul", [alpha_name, self.expansion.name], "MatMul")
        else:
            if only_conv and len(conv_ranks) == 1:
                self._base_axes = next(iter(conv_ranks))
            shape = _layout(max_rank, self._base_axes)
            self.alpha = TensorRecord(alpha_name, shape, "float32")
            self.expansion = None
            source = alpha_name
        self._made["float32", 1, self._base_axes] = source

    def tensor(self, dtype: str, form: Form, parts: int, spatial_axes: int) -> str:
        """The name of s for a branch, made on first use."""
        axes = spatial_axes if form is Form.CONV else 0
        key = (dtype, parts, axes)
        if key in self._made:
            return self._made[key]
        if dtype != "float32":
            source = self.tensor("float32", form, parts, spatial_axes)
            made = self._add("Cast", [source], f"Cast_{_suffix(key)}", to=_ELEMENT[dtype])
        elif axes != self._base_axes:
            source = self._tiled(parts)
            shape = self._shape_constant(_layout(parts * self._max_rank, axes))
            made = self._add("Reshape", [source, shape], f"Reshape_{_suffix(key)}")
        else:
            made = self._tiled(parts)
        self._made[key] = made
        return made

    def apply(self, proto: ModelProto, zeros: ZeroWeights) -> ScaleRecord:
        """Add the graph input, E and shape constants to the graph; call after the last tensor()."""
        element = _ELEMENT[self.alpha.dtype]
        proto.graph.input.append(
            helper.make_tensor_value_info(self.alpha.name, element, self.alpha.shape)
        )
        if self.expansion is not None:
            proto.graph.initializer.append(zeros.tensor(self.expansion))
        proto.graph.initializer.extend(self._shapes.values())
        scales = tuple(n for n in self._made.values() if n != self._alpha_name)
        return ScaleRecord(
            self.alpha, self.expansion, tuple(dict.fromkeys(scales)), tuple(self._shapes)
        )

    def _tiled(self, parts: int) -> str:
        key = ("float32", parts, self._base_axes)
        if key not in self._made:
            source = self._made["float32", 1, self._base_axes]
            axis = 1 if self._base_axes else 0
            self._made[key] = self._add(
                "Concat", [source] * parts, f"Concat_{_suffix(key)}", axis=axis
            )
        return self._made[key]

    def _shape_constant(self, shape: tuple[int, ...]) -> str:
        name = f"{self._alpha_name}.shape_" + "x".join(map(str, shape))
        if name not in self._shapes:
            self._claim(name)
            self._shapes[name] = numpy_helper.from_array(np.array(shape, dtype=np.int64), name)
        return name

    def _add(self, op: str, inputs: list[str], leaf: str, **attributes: Any) -> str:
        name = self._claim(f"/{self._alpha_name}/{leaf}")
        output = self._claim(f"{name}_output_0")
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output


def _layout(size: int, spatial_axes: int) -> tuple[int, ...]:
    return (1, size, *(1,) * spatial_axes) if spatial_axes else (size,)


def _suffix(key: tuple[str, int, int]) -> str:
    """What sets a form of s apart from the plain one: `float16`, `3x` tiled, `2d` spatial axes."""
    dtype, parts, axes = key
    kinds = {dtype: dtype != "float32", f"{parts}x": parts > 1, f"{axes}d": axes > 0}
    return "_".join(kind for kind, told in kinds.items() if told)
