"""Quantized graphs of every form, built in code, and what their weights are worth by definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from tests.builders import DTYPES, GraphBuilder

Array = NDArray[Any]

MICROSOFT = "com.microsoft"


@dataclass
class Quantizer:
    """Adds Q/DQ pairs and quantized weights to a builder; `weights` are the dequantized ones."""

    graph: GraphBuilder
    codes: Any = np.uint8
    domain: str = ""
    weights: dict[str, Array] = field(default_factory=dict)
    seed: int = 1

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def pair(self, tensor: str, name: str, scale: float = 0.05, zero: int | None = None) -> str:
        """`tensor` through QuantizeLinear and DequantizeLinear: `<name>_dq`."""
        limits = np.iinfo(self.codes)
        middle = (int(limits.min) + int(limits.max) + 1) // 2 + 3 if zero is None else zero
        if np.dtype(self.codes).itemsize == 2:
            scale /= 256
        # ONNX Runtime reads the type of a pair from its zero point.
        grid = [
            self.graph.constant(f"{name}_scale", np.array(scale, self.graph_type)),
            self.graph.constant(f"{name}_zero", np.array(middle, self.codes)),
        ]
        q = self.graph.node("QuantizeLinear", [tensor, *grid], f"{name}_Q", domain=self.domain)
        return self.graph.node("DequantizeLinear", [q, *grid], f"{name}_DQ", domain=self.domain)

    @property
    def graph_type(self) -> Any:
        return DTYPES[self.graph.dtype]

    def weight(
        self,
        name: str,
        *shape: int,
        codes: Any = np.int8,
        axis: int | None = None,
        block_size: int = 0,
        with_zero: bool = False,
    ) -> str:
        """A quantized weight: one scale, one per slice of `axis`, or one per block along it."""
        limits = ml_dtypes.iinfo(codes)  # type: ignore[no-untyped-call]
        q = self.random.integers(int(limits.min), int(limits.max) + 1, shape)
        sizes: tuple[int, ...] = ()
        spread: tuple[int, ...] = (1,) * len(shape)
        repeated = 1
        if block_size and axis is not None:
            repeated = block_size
            sizes = spread = tuple(
                -(-size // block_size) if a == axis % len(shape) else size
                for a, size in enumerate(shape)
            )
        elif axis is not None:
            sizes = (shape[axis],)
            spread = tuple(s if a == axis % len(shape) else 1 for a, s in enumerate(shape))
        step = 1.0 / (int(limits.max) - int(limits.min))
        scale = (self.random.uniform(0.5, 1.5, sizes) * step).astype(self.graph_type)
        zero = self.random.integers(int(limits.min) // 4, int(limits.max) // 4 + 1, sizes)
        if not with_zero:
            zero = np.zeros(sizes, np.int64)
        wide, start = scale.reshape(spread), zero.reshape(spread)
        if repeated > 1 and axis is not None:
            size = range(shape[axis])
            wide = np.repeat(wide, repeated, axis).take(size, axis)
            start = np.repeat(start, repeated, axis).take(size, axis)
        exact = (q - start).astype(np.float32) * wide.astype(np.float32)
        self.weights[name] = exact.astype(self.graph_type)
        inputs = [
            self.graph.constant(f"{name}_quantized", q.astype(codes)),
            self.graph.constant(f"{name}_scale", scale),
        ]
        inputs.append(self.graph.constant(f"{name}_zero_point", zero.astype(codes)))
        given: dict[str, Any] = {} if axis is None else {"axis": axis}
        if block_size:
            given["block_size"] = block_size
        return self.graph.node(
            "DequantizeLinear", inputs, f"{name}_DQ", domain=self.domain, **given
        )

    def rounded_weight(self, name: str, *shape: int) -> str:
        """A float weight that a Q/DQ pair rounds, as fake quantization leaves it."""
        stored = self.graph.weight(name, *shape)
        scale, zero = np.array(0.02, self.graph_type), np.array(3, np.int8)
        q = np.clip(np.rint(self.graph.weights[name] / scale) + 3, -128, 127)
        self.weights[name] = ((q - 3) * scale).astype(self.graph_type)
        grid = [self.graph.constant(f"{name}_s", scale), self.graph.constant(f"{name}_z", zero)]
        q_name = self.graph.node("QuantizeLinear", [stored, *grid], f"{name}_Q")
        return self.graph.node("DequantizeLinear", [q_name, *grid], f"{name}_DQ")

    def bias(self, name: str, x: str, weight: str) -> str:
        """An int32 bias whose scales are those of x times those of the weight, of its outputs."""
        scale = self.graph.weights[f"{x}_scale"] * self.graph.weights[f"{weight}_scale"]
        scale = scale.astype(self.graph_type)
        q = self.random.integers(-(10**4), 10**4, scale.size).astype(np.int32)
        inputs = [
            self.graph.constant(f"{name}_quantized", q),
            self.graph.constant(f"{name}_scale", scale),
            self.graph.constant(f"{name}_zero_point", np.zeros(scale.size, np.int32)),
        ]
        self.weights[name] = (q.astype(np.float32) * scale).astype(self.graph_type)
        return self.graph.node("DequantizeLinear", inputs, f"{name}_DQ", axis=0)

    def packed(
        self,
        name: str,
        x: str,
        inputs: int,
        outputs: int,
        *,
        bits: int = 4,
        block_size: int = 16,
        zeros: str = "",
        bias: bool = False,
        **attributes: Any,
    ) -> str:
        """A MatMulNBits; `zeros` is "", "packed" or "float"."""
        blocks = -(-inputs // block_size)
        top = 1 << bits
        q = self.random.integers(0, top, (outputs, blocks, block_size))
        scale = self.random.uniform(0.5, 1.5, (outputs, blocks)).astype(self.graph_type)
        scale = (scale / np.float16(top)).astype(self.graph_type)
        given = [x, self.graph.constant(f"{name}.weight_Q4", _packed(q, bits))]
        given.append(self.graph.constant(f"{name}.weight_scales", scale))
        zero: Array = np.full((outputs, blocks), top // 2)
        if zeros == "packed":
            zero = self.random.integers(0, top, (outputs, blocks))
            filled = np.zeros((outputs, -(-blocks * bits // 8) * 8 // bits), np.int64)
            filled[:, :blocks] = zero
            given.append(self.graph.constant(f"{name}.zeros", _packed(filled, bits)))
        elif zeros == "float":
            zero = self.random.uniform(0, top, (outputs, blocks)).astype(self.graph_type)
            given.append(self.graph.constant(f"{name}.zeros", zero))
        else:
            given.append("")
        codes = q.astype(np.float32) - zero[..., None].astype(np.float32)
        weight = codes * scale[..., None].astype(np.float32)
        self.weights[name] = weight.reshape(outputs, -1)[:, :inputs].astype(self.graph_type)
        if bias:
            given += ["", self.graph.weight(f"{name}.bias", outputs)]
        while not given[-1]:
            given.pop()
        return self.graph.node(
            "MatMulNBits",
            given,
            f"/{name}/MatMul_Q4",
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=block_size,
            **attributes,
        )


def _packed(q: Array, bits: int) -> Array:
    """Integers along the last axis -> bytes, the low bits first."""
    ones = (q[..., None] >> np.arange(bits)) & 1
    return np.packbits(ones.reshape(*q.shape[:-1], -1).astype(np.uint8), -1, bitorder="little")


@dataclass(frozen=True)
class Base:
    """One quantized graph of two linears in a row, `fc` among them."""

    name: str
    build: Callable[[Quantizer], str]
    x: tuple[int, ...] = (3, 16)
    codes: Any = np.uint8
    domain: str = ""
    dtype: str = "float32"
    opset: int = 21
    step: float = 0.05
    """Of the grid of fc's output; 0 without one."""


def matmul(
    codes: Any = np.int8, axis: int | None = None, *, bias: bool = False, between: bool = False
) -> Callable[[Quantizer], str]:
    """Two quantized MatMuls, each output on a grid; the second one is `fc`."""

    def build(q: Quantizer) -> str:
        g = q.graph
        x = q.pair("x", "x")
        w = q.weight("first.weight", 16, 16, codes=codes, axis=axis)
        x = q.pair(g.node("MatMul", [x, w], "/first/MatMul"), "first")
        w = q.weight("fc.weight", 16, 8, codes=codes, axis=axis)
        y = g.node("MatMul", [x, w], "/fc/MatMul")
        if between:
            y = q.pair(y, "product")
        if bias:
            y = g.node("Add", [y, g.weight("fc.bias", 8)], "/fc/Add")
        return q.pair(y, "fc")

    return build


def gemm(q: Quantizer) -> str:
    inputs = [q.pair("x", "x"), q.weight("fc.weight", 8, 16, axis=0)]
    inputs.append(q.bias("fc.bias", "x", "fc.weight"))
    return q.pair(q.graph.node("Gemm", inputs, "/fc/Gemm", transB=1), "fc")


def transposed(q: Quantizer) -> str:
    w = q.graph.node("Transpose", [q.weight("fc.weight", 8, 16, axis=0)], "/t", perm=[1, 0])
    return q.pair(q.graph.node("MatMul", [q.pair("x", "x"), w], "/fc/MatMul"), "fc")


def blocks(q: Quantizer) -> str:
    w = q.weight("fc.weight", 16, 8, codes=ml_dtypes.int4, axis=0, block_size=4, with_zero=True)
    return q.pair(q.graph.node("MatMul", [q.pair("x", "x"), w], "/fc/MatMul"), "fc")


def weight_only(q: Quantizer) -> str:
    w = q.weight("fc.weight", 16, 8, codes=np.uint8, axis=-1, with_zero=True)
    return q.graph.node("MatMul", ["x", w], "/fc/MatMul")


def rounded(q: Quantizer) -> str:
    w = q.rounded_weight("fc.weight", 16, 8)
    return q.pair(q.graph.node("MatMul", [q.pair("x", "x"), w], "/fc/MatMul"), "fc")


def conv(q: Quantizer) -> str:
    inputs = [q.pair("x", "x"), q.weight("fc.weight", 8, 16, 3, 3, axis=0)]
    inputs.append(q.bias("fc.bias", "x", "fc.weight"))
    return q.pair(q.graph.node("Conv", inputs, "/fc/Conv", pads=[1, 1, 1, 1]), "fc")


def several_readers(q: Quantizer) -> str:
    """Every consumer has a DequantizeLinear of its own."""
    y = matmul()(q)
    g = q.graph
    again = g.node("DequantizeLinear", ["fc_Q_output_0", "fc_scale", "fc_zero"], "again_DQ")
    return g.node("Sub", [g.node("Relu", [y], "/relu"), again], "/sub")


def own_constants(q: Quantizer) -> str:
    """The grid is in Constant nodes, one for each of the pair, as fake quantization is exported."""
    y = matmul()(q)
    for node in q.graph.nodes:
        if node.name in ("fc_Q", "fc_DQ"):
            for position, name in ((1, "fc_scale"), (2, "fc_zero")):
                value = numpy_helper.from_array(q.graph.weights[name])
                constant = q.graph.node("Constant", [], f"{node.name}_{name}", value=value)
                node.input[position] = constant
    q.graph.nodes.sort(key=lambda node: node.op_type != "Constant")
    del q.graph.weights["fc_scale"], q.graph.weights["fc_zero"]
    return y


def nbits(**options: Any) -> Callable[[Quantizer], str]:
    def build(q: Quantizer) -> str:
        return q.packed("fc", "x", 40, 8, **options)

    return build


BASES = [
    Base("matmul_u8_s8", matmul()),
    Base("matmul_u8_s8_channels", matmul(axis=1)),
    Base("matmul_u8_u8", matmul(np.uint8)),
    Base("matmul_s8_s8", matmul(), codes=np.int8),
    Base("matmul_u16_s8", matmul(), codes=np.uint16),
    Base("matmul_s16_s8_channels", matmul(axis=1), codes=np.int16),
    Base("matmul_u16_contributed", matmul(), codes=np.uint16, domain=MICROSOFT, opset=17),
    Base("matmul_u8_opset_13", matmul(), opset=13),
    Base("bias", matmul(bias=True)),
    Base("bias_between_pairs", matmul(bias=True, between=True)),
    Base("gemm", gemm),
    Base("transposed", transposed),
    Base("blocks_of_four_bits", blocks),
    Base("rounded_float_weight", rounded),
    Base("weight_only", weight_only, step=0),
    Base("conv", conv, (1, 16, 5, 4)),
    Base("several_readers", several_readers),
    Base("own_constants", own_constants),
    Base("half_precision", matmul(), dtype="float16"),
    Base("four_bits", nbits(), (3, 40), step=0),
    Base("four_bits_rounding_x", nbits(accuracy_level=4), (3, 40), step=0),
    Base("four_bits_zeros", nbits(zeros="packed"), (3, 40), step=0),
    Base("four_bits_bias", nbits(bias=True, zeros="float"), (3, 40), step=0),
    Base("eight_bits", nbits(bits=8, block_size=32, zeros="packed"), (3, 40), step=0),
]


def quantizer(base: Base) -> Quantizer:
    graph = GraphBuilder(base.dtype)
    graph.input("x", base.x)
    return Quantizer(graph, base.codes, base.domain)


def built(base: Base) -> tuple[ModelProto, dict[str, Array]]:
    """The graph, and its weights by module."""
    made = quantizer(base)
    y = base.build(made)
    made.graph.output(y, [f"d{n}" for n in range(len(base.x))])
    return model_of(made, base.opset), made.weights


def model_of(made: Quantizer, opset: int = 21) -> ModelProto:
    return made.graph.model(opset=opset, ir_version=10, other_domains=[MICROSOFT])


def sample(base: Base, seed: int = 5) -> Array:
    """Inputs that reach the ends of the first grid."""
    values = np.random.default_rng(seed).normal(0, 2, base.x)
    return values.astype(DTYPES[base.dtype])
