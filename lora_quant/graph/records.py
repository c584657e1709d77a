"""Plain records of what the graph room found and did, so that later rooms never touch ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """How a branch computes: on the last axis, on axis 1 of `[N, C, *spatial]`, or from a table.

    An embedding looks its rows up (Gather): x holds indices, A is a table `[in, R]` as the base's
    weight is `[in, out]`, and B works on the last axis.
    """

    MATMUL = "matmul"
    CONV = "conv"
    EMBEDDING = "embedding"


class Vector(Enum):
    """The vectors of the canonical form y = g * (W (h * x) + b) + B (s * (A x)) + c."""

    G = "g"
    H = "h"
    C = "c"


class Gate(Enum):
    """What multiplies s per token: a graph input (aLoRA), or a router in the branch (LiLY)."""

    INPUT = "input"
    ROUTER = "router"


class Storage(Enum):
    """How the base stores the weight of a node.

    DEQUANTIZED: a DequantizeLinear gives the weight, of integers, or of a float initializer that a
    QuantizeLinear rounds. PACKED: MatMulNBits reads blocks of packed integers itself.
    """

    FLOAT = "float"
    DEQUANTIZED = "dequantized"
    PACKED = "packed"


@dataclass(frozen=True)
class ConvGeometry:
    """Spatial attributes of a convolution; the branch's A takes them over, B is 1 x 1.

    Neither A nor B is grouped in the graph: what a B of `groups` groups connects is in its values,
    which are zero outside of the groups' blocks (see lora_quant.graph.branching.branches). Dilated
    convolutions take no branch.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1


@dataclass(frozen=True)
class LinearNode:
    """A node that computes W x with a constant W of shape `[out, in]` (times `gain` for Gemm).

    `weight` is the initializer that stores W; `weight_is_in_out` tells its storage order.
    `input_transposed` is Gemm's transA: x arrives as `[in, rows]`. `node` is "" if the node has no
    name; `product`, its output, always tells it. `dtype` is what it computes in, whatever `storage`
    its weight has.
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
    storage: Storage = Storage.FLOAT

    @property
    def label(self) -> str:
        """The node's name, or else that of its output."""
        return self.node or self.product

    @property
    def is_quantized(self) -> bool:
        """Whether the base has rounded the weight to a grid."""
        return self.storage is not Storage.FLOAT


@dataclass(frozen=True)
class ModulePart:
    """Output rows `[offset, offset + size)` of an attach point that belong to one module."""

    module: str
    offset: int
    size: int


@dataclass(frozen=True)
class OutputGrid:
    """The base's own QuantizeLinear and DequantizeLinear behind an attach point.

    `source` is quantized to `codes`, by `scale` and `zero_point` ("" without one), the tensors
    that the QuantizeLinear reads. `others` are what further DequantizeLinear nodes make of the
    same codes. Quantizing once more what they give leads to the same codes.
    """

    source: str
    codes: str
    scale: str
    zero_point: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttachPoint:
    """Where a branch is added.

    `output` is the tensor that the branch will produce under its old name: the product, the output
    of the bias Add that follows it, or what the Q/DQ pair of `grid` behind them gives. `parts` has
    one entry, or one per module of a fused projection (qkv). `low_rank`: whether any adapter brings
    A and B here; `vectors` and `gates`: which vectors and gates any adapter needs here.
    """

    name: str
    linear: LinearNode
    output: str
    bias_node: str | None
    parts: tuple[ModulePart, ...]
    low_rank: bool = True
    vectors: frozenset[Vector] = frozenset()
    gates: frozenset[Gate] = frozenset()
    grid: OutputGrid | None = None


@dataclass(frozen=True)
class TensorRecord:
    """Name, shape and dtype (ONNX spelling in lower case) of one tensor that was added.

    Only the gate input may have a size of -1: one that the graph leaves open.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Router:
    """A branch that weighs its ranks by a softmax over experts, averaged over the tokens.

    q = mean over tokens of softmax(a `weight`) `expansion` + `rest`, and m = (s * q) * a. `weight`
    `[R, experts]`; `expansion` `[experts, R]` is 1 where a rank belongs to an expert; `rest` `[R]`
    is 1 for the ranks that are not routed. Every part and slot has experts, and a softmax, of its
    own; branching/router.py tells which. `tensors` are the activations in graph order, ending with
    q and s * q.
    """

    weight: TensorRecord
    expansion: TensorRecord
    rest: TensorRecord
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Requantized:
    """A Q/DQ pair that was added behind a sum: `raw` -> `codes` -> `output`.

    Both nodes read `scale` and `zero_point` ("" without one): tensors of the base, those of the
    pair that gave `output` before, so that what the base computes is rounded to itself.
    """

    raw: str
    codes: str
    output: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class Branch:
    """The tensors of one branch: y = h + l, l = B m, m = s * a, a = A x.

    `relayouts` are the tensors between them that only change layout (a transposed x). Where the
    attach point has vectors, h is what they give. With `requantized`, the sum is its `raw`, and y
    what it gives.

    In a graph that brought its branches, s may be behind B: then m is a, and B m is among the
    `relayouts`. `out_axes` tells the axes of A's ranks and of B's outputs in their initializers, if
    they are not those that add_branches gives them.
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
    router: Router | None = None
    requantized: Requantized | None = None
    out_axes: tuple[int, int] | None = None

    @property
    def channel_axes(self) -> tuple[int, int]:
        """The axes of A's ranks and of B's outputs: 1 and 1 for `[in, R]` and `[R, out]`."""
        if self.out_axes is not None:
            return self.out_axes
        return (0, 0) if self.attach.linear.form is Form.CONV else (1, 1)


@dataclass(frozen=True)
class VectorTensors:
    """One vector at one attach point: its weight, and the tensor that it gives.

    g: `h * g`, c: that plus c, h: `x * h`, which the base's node reads instead of x. The weight is
    `[out]` or `[in]`, for convolutions `[1, out, 1, ...]` or `[1, in, 1, ...]`, and `[in, 1]` for h
    where x arrives transposed. `input` is what it multiplies or is added to. With `requantized`,
    the node gives its `raw`; it is told of the last vector of a point without low rank alone.
    """

    attach: AttachPoint
    vector: Vector
    weight: TensorRecord
    input: str
    output: str
    requantized: Requantized | None = None


@dataclass(frozen=True)
class ReplacedParameter:
    """An initializer of the base whose values a use case replaces, such as the weight of a norm.

    `weight` is the initializer's own name, shape and dtype; `transposed` tells that it holds the
    parameter's transpose.
    """

    parameter: str
    weight: TensorRecord
    transposed: bool = False


@dataclass(frozen=True)
class ScaleRecord:
    """How the strength reaches the branches: alpha input, E `[slots, R]`, s and its re-layouts.

    With the `rank` layout the alpha input is s itself and `expansion` is None. `shapes` are the
    int64 initializers that the re-layouts read. `gate` is the graph input `[batch, tokens, slots]`
    (`rank` layout: `[batch, tokens, R]`) that multiplies alpha where an adapter is gated; `scales`
    then holds alpha * gate and what comes of it as well, and `gated` these alone, alpha * gate
    first. A graph that brought its branches may have an alpha of one value for all ranks.
    """

    alpha: TensorRecord
    expansion: TensorRecord | None
    scales: tuple[str, ...]
    shapes: tuple[str, ...] = ()
    gate: TensorRecord | None = None
    gated: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConstantScale:
    """What some branches of a graph are scaled by, in place of a strength that is fed.

    `weight` holds a value for each rank, or one for all. `branches` are the names of their attach
    points.
    """

    weight: TensorRecord
    branches: tuple[str, ...]


@dataclass(frozen=True)
class BranchedGraph:
    """Everything that was added to the base graph, and what of the base a use case replaces.

    `points` are the attach points as they were given, in graph order; `branches` has one entry for
    each with low rank, `vectors` one for each vector. `scale` is None without any branch.

    Of a graph that brought its branches, `points` has one entry for each branch, chained ones
    among them, `scale` is None if no input feeds strengths, and `constant_scales` are the
    initializers that scale branches.
    """

    points: tuple[AttachPoint, ...]
    branches: tuple[Branch, ...]
    scale: ScaleRecord | None
    max_rank: int
    slot_count: int
    vectors: tuple[VectorTensors, ...] = ()
    replaced: tuple[ReplacedParameter, ...] = ()
    constant_scales: tuple[ConstantScale, ...] = ()

    @property
    def requantized(self) -> tuple[Requantized, ...]:
        """Every Q/DQ pair that was added behind a sum."""
        found = [branch.requantized for branch in self.branches]
        found += [vector.requantized for vector in self.vectors]
        return tuple(one for one in found if one is not None)
