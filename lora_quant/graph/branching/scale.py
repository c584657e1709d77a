"""How the strength of the adapters reaches the rank axis of every branch.

    slot layout:  alpha [slots] (graph input),  s = alpha @ E,  E [slots, R] (updatable weight)
    rank layout:  alpha [R] (graph input) is s itself; the host expands strengths to ranks

    gated:        s = (alpha * gate) @ E, or alpha * gate, per token: [batch, tokens, R]

E[i, ranks of slot i] = lora_alpha_i / rank_i, zero elsewhere. Computed once in float32 and shared;
cast to the dtype of the branches, tiled for fused projections, reshaped to [1, R, 1, 1] for
convolutions. The gate is a graph input of its own, shared by all gated points; an application
feeds 1 for slots whose adapter is not gated.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.files.element_types import ELEMENTS
from lora_quant.graph.records import ScaleRecord, TensorRecord

# Where the ranks are in s [batch, tokens, R].
_GATED_AXIS = 2


class ScaleBuilder:
    """Collects the nodes that make s in each dtype, tiling and layout that branches ask for."""

    def __init__(
        self,
        edit: GraphEdit,
        *,
        alpha_name: str,
        layout: Literal["slot", "rank"],
        max_rank: int,
        slot_count: int,
        conv_ranks: frozenset[int],
        only_conv: bool,
        gate_sizes: tuple[int | str, int | str],
    ) -> None:
        """`conv_ranks` are the numbers of spatial axes among the convolutions.

        `gate_sizes` are the sizes of batch and tokens, "" for those that the graph leaves open.
        """
        self._edit = edit
        self._nodes: list[NodeProto] = []
        self._alpha_name = edit.claim(alpha_name)
        self._max_rank = max_rank
        self._gate_sizes = gate_sizes
        self._constants: dict[str, TensorProto] = {}
        self._made: dict[tuple[str, int, int], str] = {}
        self._gated: dict[tuple[str, int], str] = {}
        self._base_axes = 0
        self._gate: TensorRecord | None = None
        self._expansion: TensorRecord | None = None
        if layout == "slot":
            self._alpha = TensorRecord(alpha_name, (slot_count,), "float32")
            expansion = f"{alpha_name}.expansion"
            self._expansion = TensorRecord(expansion, (slot_count, max_rank), "float32")
        else:
            if only_conv and len(conv_ranks) == 1:
                self._base_axes = next(iter(conv_ranks))
            self._alpha = TensorRecord(alpha_name, _layout(max_rank, self._base_axes), "float32")

    def tensor(self, dtype: str, parts: int, spatial_axes: int) -> str:
        """The name of s for a branch, `[parts * R]` or that with axes of 1; made on first use."""
        key = (dtype, parts, spatial_axes)
        if key in self._made:
            return self._made[key]
        if dtype != "float32":
            source = self.tensor("float32", parts, spatial_axes)
            made = self._add("Cast", [source], f"Cast_{_suffix(key)}", to=ELEMENTS[dtype])
        elif spatial_axes != self._base_axes:
            source = self.tensor("float32", parts, self._base_axes)
            shape = self.constant("shape", _layout(parts * self._max_rank, spatial_axes))
            made = self._add("Reshape", [source, shape], f"Reshape_{_suffix(key)}")
        elif parts > 1:
            source = self.tensor("float32", 1, self._base_axes)
            axis = 1 if self._base_axes else 0
            made = self._add("Concat", [source] * parts, f"Concat_{_suffix(key)}", axis=axis)
        else:
            made = self._alpha_name
            if self._expansion is not None:
                made = self._add("MatMul", [made, self._expansion.name], "MatMul")
        self._made[key] = made
        return made

    def gated(self, dtype: str, parts: int) -> str:
        """The name of s per token, `[batch, tokens, parts * R]`; made on first use."""
        key = (dtype, parts)
        if key in self._gated:
            return self._gated[key]
        if dtype != "float32":
            source = self.gated("float32", parts)
            made = self._add(
                "Cast", [source], f"Cast_gate_{_suffix((*key, 0))}", to=ELEMENTS[dtype]
            )
        elif parts > 1:
            source = self.gated("float32", 1)
            leaf = f"Concat_gate_{_suffix((*key, 0))}"
            made = self._add("Concat", [source] * parts, leaf, axis=_GATED_AXIS)
        else:
            width = self._alpha.shape[-1]
            open_sizes = (size if isinstance(size, int) else -1 for size in self._gate_sizes)
            name = self._edit.claim(f"{self._alpha_name}_gate")
            self._gate = TensorRecord(name, (*open_sizes, width), "float32")
            made = self._add("Mul", [self._alpha_name, name], "Mul_gate")
            if self._expansion is not None:
                self._gated["alpha", 1] = made
                made = self._add("MatMul", [made, self._expansion.name], "MatMul_gate")
        self._gated[key] = made
        return made

    def constant(self, kind: str, values: tuple[int, ...]) -> str:
        """The name of an int64 initializer, `kind` and its values in its name; shared by all."""
        name = f"{self._alpha_name}.{kind}_" + "x".join(map(str, values))
        if name not in self._constants:
            self._edit.claim(name)
            array = np.array(values, dtype=np.int64)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def finish(self) -> ScaleRecord:
        """Hand the inputs, E, constants and nodes to the edit; call after the last tensor()."""
        edit, element = self._edit, TensorProto.FLOAT
        edit.input(helper.make_tensor_value_info(self._alpha.name, element, self._alpha.shape))
        if self._gate is not None:
            names = (f"{self._alpha_name}_batch", f"{self._alpha_name}_tokens")
            sizes = [size or name for size, name in zip(self._gate_sizes, names, strict=True)]
            shape = [*sizes, self._gate.shape[-1]]
            edit.input(helper.make_tensor_value_info(self._gate.name, element, shape))
        if self._expansion is not None:
            edit.weight(self._expansion)
        for constant in self._constants.values():
            edit.constant(constant)
        edit.front(self._nodes)
        made = [*self._made.values(), *self._gated.values()]
        return ScaleRecord(
            alpha=self._alpha,
            expansion=self._expansion,
            scales=tuple(dict.fromkeys(name for name in made if name != self._alpha_name)),
            shapes=tuple(self._constants),
            gate=self._gate,
            gated=tuple(self._gated.values()),
        )

    def _add(self, op: str, inputs: list[str], leaf: str, **attributes: Any) -> str:
        return self._edit.node(self._nodes, op, inputs, f"/{self._alpha_name}/{leaf}", **attributes)


def _layout(size: int, spatial_axes: int) -> tuple[int, ...]:
    return (1, size, *(1,) * spatial_axes) if spatial_axes else (size,)


def _suffix(key: tuple[str, int, int]) -> str:
    """What sets a form of s apart from the plain one: `float16`, `3x` tiled, `2d` spatial axes."""
    dtype, parts, axes = key
    kinds = {dtype: dtype != "float32", f"{parts}x": parts > 1, f"{axes}d": axes > 0}
    return "_".join(kind for kind, told in kinds.items() if told)
