"""Steps between the HTP and the CPU: which step an output has, and how many are allowed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from lora_quant.runtime.verify.htp_bound import (
    has_functions,
    noise_bound,
    output_steps,
    product_bounds,
)
from lora_quant.runtime.verify.steps import compare_steps

STEP = 0.25


def chain(
    products: int, *, weight: int = TensorProto.INT8, activation: str = "uint16"
) -> GraphProto:
    """x -> products in a row, each added to its input and rounded; the last sum is y."""
    initializers = [
        helper.make_tensor("w_q", weight, [2, 2], [0] * 4),
        numpy_helper.from_array(np.array(1.0, np.float32), "w_scale"),
        helper.make_tensor("w_zero", weight, [], [0]),
        numpy_helper.from_array(np.array([STEP], np.float32), "y_scale"),
        numpy_helper.from_array(np.array([0], activation), "y_zero"),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"])]
    last = "x"
    for number in range(products):
        q, y = f"q{number}", "y" if number == products - 1 else f"y{number}"
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"p{number}"]))
        nodes.append(helper.make_node("Add", [last, f"p{number}"], [f"s{number}"]))
        nodes.append(helper.make_node("QuantizeLinear", [f"s{number}", "y_scale", "y_zero"], [q]))
        nodes.append(helper.make_node("DequantizeLinear", [q, "y_scale", "y_zero"], [y]))
        last = y
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    return helper.make_graph(nodes, "g", [x], [y], initializers)


def test_the_step_is_the_scale_of_what_makes_the_output() -> None:
    assert output_steps(chain(1)) == {"y": STEP}


def test_an_output_of_floats_has_no_step() -> None:
    graph = chain(1)
    graph.output.add().CopyFrom(helper.make_tensor_value_info("s0", TensorProto.FLOAT, [1, 2]))
    assert list(output_steps(graph)) == ["y"]


@pytest.mark.parametrize("products", [1, 4, 9])
def test_bounds_grow_with_the_root_of_the_longest_path(products: int) -> None:
    assert product_bounds(chain(products), "73")["y"] == 6 * math.sqrt(products)


@pytest.mark.parametrize(
    ("weight", "activation", "steps"),
    [
        (TensorProto.INT8, "uint16", 6),
        (TensorProto.INT4, "uint16", 30),
        (TensorProto.INT16, "uint16", 60),
        (TensorProto.INT8, "uint8", 2),
        (TensorProto.INT4, "int8", 2),
    ],
)
def test_bounds_of_one_product(weight: int, activation: str, steps: float) -> None:
    assert product_bounds(chain(1, weight=weight, activation=activation), "73")["y"] == steps


@pytest.mark.parametrize(
    ("weight", "activation", "steps"),
    [
        (TensorProto.INT8, "uint16", 30),
        (TensorProto.INT4, "uint16", 50),
        (TensorProto.INT8, "uint8", 2),
    ],
)
def test_older_architectures_round_more(weight: int, activation: str, steps: float) -> None:
    assert product_bounds(chain(1, weight=weight, activation=activation), "69")["y"] == steps


def test_functions_are_told_from_sums() -> None:
    graph = chain(2)
    assert not has_functions(graph)
    graph.node.add().CopyFrom(helper.make_node("MatMul", ["y0", "s1"], ["product"]))
    assert has_functions(graph), "the HTP approximates products of two activations"
    graph = chain(1)
    graph.node.add().CopyFrom(helper.make_node("Sqrt", ["s0"], ["root"]))
    assert has_functions(graph)


def test_noise_is_counted_in_steps() -> None:
    assert noise_bound(np.ones(3), np.array([1, 1.5, 0.75]), 0.25) == 6


def test_differences_are_counted_in_steps() -> None:
    cpu = {"y": np.array([[0.0, 1.0]], np.float32)}
    htp = {"y": np.array([[0.5, 1.0]], np.float32)}
    (one,) = compare_steps("it", htp, cpu, {"y": STEP}, {"y": 2.0})
    assert (one.steps, one.mean, one.ok) == (2, 1, True)
    (one,) = compare_steps("it", htp, cpu, {"y": STEP}, {"y": 1.9})
    assert not one.ok
    for wrong in (np.array([[np.nan, 1]], np.float32), np.zeros((1, 3), np.float32)):
        (one,) = compare_steps("it", {"y": wrong}, cpu, {"y": STEP}, {"y": 2.0})
        assert not one.ok
