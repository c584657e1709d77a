"""Plain records of what the graph room found and did, so that later rooms never touch ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """How a branch computes: on the last axis (MatMul) or axis 1 of `[N, C, *spatial]` (Conv)."""

    MATMUL = "matmul"
    CONV = "conv"


@dataclass(frozen=True)
class ConvGeometry:
    """Spatial attributes of a convolution; the branch's A takes them over, B is 1 x 1.

    Grouped and dilated convolutions take no branch, so there is nothing to say about them here.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"


@dataclass(frozen=True)
class LinearNode:
    """A node that computes W x with a constant W of shape `[out, in]` (times `gain` for Gemm).

    `weight` is the initializer that stores W; `weight_is_in_out` tells its storage order.
    `input_transposed` is Gemm's transA: x arrives as `[in, rows]`. `node` is "" if the node has no
    name; `product`, its output, always tells it.
    """

    node: str
    op: str
    form: Form
    x: str
    weight: str
    product: str
    in_features: int
    out_features: int
    dtype: str
    weight_is_in_out: bool
    conv: ConvGeometry | None = None
    input_transposed: bool = False
    gain: float = 1.0


@dataclass(frozen=True)
class ModulePart:
    """Output rows `[offset, offset + size)` of an attach point that belong to one module."""

    module: str
    offset: int
    size: int


@dataclass(frozen=True)
class AttachPoint:
    """Where a branch is added.

    `output` is the tensor that the branch's Add will produce under its old name: the product, or
    the output of the bias Add that follows it. `parts` has one entry, or one per module of a
    fused projection (qkv).
    """

    name: str
    linear: LinearNode
    output: str
    bias_node: str | None
    parts: tuple[ModulePart, ...]


@dataclass(frozen=True)
class TensorRecord:
    """Name, shape and dtype (ONNX spelling in lower case) of one tensor that was added."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Branch:
    """The tensors of one built branch: y = h + l, l = B m, m = s * a, a = A x.

    `relayouts` are the tensors between them that only change layout (a transposed x).
    """

    attach: AttachPoint
    a_weight: TensorRecord
    b_weight: TensorRecord
    x: str
    h: str
    a: str
    m: str
    l: str  # noqa: E741  (the field's letter for the branch's contribution)
    y: str
    relayouts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScaleRecord:
    """How the strength reaches the branches: alpha input, E `[slots, R]`, s and its re-layouts.

    With the `rank` layout the alpha input is s itself and `expansion` is None. `shapes` are the
    int64 initializers that the re-layouts read.
    """

    alpha: TensorRecord
    expansion: TensorRecord | None
    scales: tuple[str, ...]
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BranchedGraph:
    """Everything that was added to the base graph."""

    branches: tuple[Branch, ...]
    scale: ScaleRecord
    max_rank: int
    slot_count: int
