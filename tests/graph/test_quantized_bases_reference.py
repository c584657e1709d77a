"""The reference of `verify` on quantized bases: (W' - W) x beside the base's own node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.runtime.reference.base_view import BaseView
from lora_quant.runtime.reference.reference import BaseChange, NodeChange, Reference
from tests.builders import save
from tests.graph.quantized_bases import BASES, Base, Quantizer, built, sample
from tests.graph.test_quantized_bases_exact import built_values, run

Array = NDArray[Any]


def grouped(q: Quantizer) -> str:
    inputs = [q.pair("x", "x"), q.weight("fc.weight", 8, 8, 3, 3, axis=0)]
    inputs.append(q.bias("fc.bias", "x", "fc.weight"))
    return q.pair(q.graph.node("Conv", inputs, "/fc/Conv", pads=[1, 1, 1, 1], group=2), "fc")


def scaled_gemm(q: Quantizer) -> str:
    inputs = [q.pair("x", "x"), q.weight("fc.weight", 8, 16, axis=0)]
    return q.graph.node("Gemm", inputs, "/fc/Gemm", transB=1, alpha=0.5)


ALL = [
    *BASES,
    Base("grouped", grouped, (1, 16, 5, 4)),
    Base("scaled_gemm", scaled_gemm, step=0),
]


def opened(base: Base, folder: Path) -> tuple[ModelProto, BaseView, str]:
    model, _ = built(base)
    path = save(model, folder / "base.onnx")
    name = next(n.name for n in model.graph.node if n.name.startswith("/fc/") and len(n.input) > 1)
    return model, BaseView(built(base)[0], path), name


@pytest.mark.parametrize("base", ALL, ids=lambda base: base.name)
def test_nothing_changed_is_the_base_bit_for_bit(base: Base, tmp_path: Path) -> None:
    """At ORT_ENABLE_BASIC, at which the reference runs."""
    model, view, node = opened(base, tmp_path)
    wanted = run(model, {"x": sample(base)}, "ENABLE_BASIC")
    (got,) = Reference(view, [node]).run({"x": sample(base)}, BaseChange()).values()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "base", [base for base in ALL if base.name != "several_readers"], ids=lambda base: base.name
)
def test_a_change_of_the_weight_is_added_in_floats(base: Base, tmp_path: Path) -> None:
    """A multiple of W itself: W' = 1.25 W gives W x + 0.25 W x.

    Without a grid the product is off by the roundings of sums of 40 terms, 5e-6 of the largest
    (float32), and with MatMulNBits that rounds its inputs by theirs as well. On a grid the sum is
    rounded once more: one step, and the step's share of what rounded W x is off by.
    """
    model, view, node = opened(base, tmp_path)
    linear = view.linear(node)
    weight = linear.ungrouped()
    added = np.full(linear.shape[0], 0.5, linear.dtype)
    change = BaseChange({node: NodeChange((1.25 * weight).astype(linear.dtype), added)})
    bias = linear.bias().astype(np.float64).reshape(linear.value_shape)
    product = next(n.output[0] for n in model.graph.node if n.name == node)
    plain = _with_output(base, product)
    W_x = run(plain, {"x": sample(base)}, "DISABLE_ALL").astype(np.float64)
    behind = bias if linear.op == "MatMul" else np.zeros(1)
    wanted = W_x + 0.25 * (W_x - bias + behind) + 0.5 + behind
    (got,) = Reference(view, [node]).run({"x": sample(base)}, change).values()
    bound = 5e-6 * np.abs(wanted).max()
    if base.name == "four_bits_rounding_x":
        bound = 5e-2 * np.abs(wanted).max()
    if base.step:
        scale, zero = (built_values(plain, name) for name in _grid_of(base))
        limits = np.iinfo(zero.dtype)
        wanted = (np.clip(np.rint(wanted / scale) + zero, limits.min, limits.max) - zero) * scale
        # Two pairs in a row (bias_between_pairs) round twice.
        bound = 2.01 * float(scale)
    assert np.abs(got - wanted).max() <= bound


def _grid_of(base: Base) -> tuple[str, str]:
    model, _ = built(base)
    quantize = next(n for n in reversed(model.graph.node) if n.op_type == "QuantizeLinear")
    return quantize.input[1], quantize.input[2]


def _with_output(base: Base, tensor: str) -> ModelProto:
    """The base with one of its tensors as its only output."""
    model, _ = built(base)
    del model.graph.output[:]
    model.graph.output.add(name=tensor)
    return model
