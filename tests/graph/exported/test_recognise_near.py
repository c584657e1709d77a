"""What is nearly a branch is not taken, and the report says why; ordinary networks give none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph
from tests.builders import GraphBuilder
from tests.graph.helpers import opened

Array = NDArray[np.float64]
IN, RANK, OUT, TOKENS = 6, 2, 8, 3


class Net:
    """x [2, tokens, IN], and a base linear that reads it; `done` opens what was added."""

    def __init__(self, folder: Path) -> None:
        self.graph = GraphBuilder()
        self.folder = folder
        self.x = self.graph.input("x", (2, TOKENS, IN))
        self.h = self.graph.matmul("base", self.x, in_features=IN, out_features=OUT, weight="W")

    def first(self, x: str = "", name: str = "first", rank: int = RANK, inputs: int = IN) -> str:
        return self.graph.matmul(name, x or self.x, in_features=inputs, out_features=rank)

    def second(self, low: str, name: str = "second", rank: int = RANK, outputs: int = OUT) -> str:
        return self.graph.matmul(name, low, in_features=rank, out_features=outputs)

    def done(self, h: str, l_: str) -> ExportedGraph:
        y = self.graph.node("Add", [h, l_], "sum")
        self.graph.output(y, ("a", "b", "c"))
        return self.opened()

    def opened(self, opset: int = 17) -> ExportedGraph:
        model = self.graph.model(opset=opset, other_domains=["com.microsoft"])
        return recognise_branches(opened(model, self.folder))


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


def reason(found: ExportedGraph, node: str = "sum") -> str:
    """The one report."""
    assert found.points == ()
    (near,) = found.near
    assert near.node == node
    return near.reason


def test_a_branch_is_taken(net: Net) -> None:
    found = net.done(net.h, net.second(net.first()))
    assert [len(point.branches) for point in found.points] == [1]
    assert found.near == ()


def test_a_scale_per_output_is_none(net: Net) -> None:
    scale = net.graph.weight("g", OUT)
    l_ = net.graph.node("Mul", [net.second(net.first()), scale], "dora")
    assert "multiplied by a vector of 8 ('dora'), as DoRA does" in reason(net.done(net.h, l_))


def test_a_scale_of_another_size_than_the_rank_is_none(net: Net) -> None:
    scale = net.graph.weight("s", 1, 1, 1)
    wrong = net.graph.weight("t", TOKENS, 1)
    low = net.graph.node("Mul", [net.graph.node("Mul", [net.first(), scale], "one"), wrong], "two")
    text = reason(net.done(net.h, net.second(low)))
    assert text == (
        "what A gives is multiplied by a vector of 3, expected one value, or one for each of the "
        "2 ranks"
    )


def test_a_scale_along_the_tokens_is_none(tmp_path: Path) -> None:
    net = Net(tmp_path)
    scale = net.graph.weight("s", TOKENS, 1)
    low = net.graph.node("Mul", [net.first(rank=TOKENS), scale], "scaled")
    found = net.done(net.h, net.second(low, rank=TOKENS))
    assert "along another axis than the ranks" in reason(found)


def test_a_computed_scale_is_none(net: Net) -> None:
    gate = net.graph.node("Sigmoid", [net.first(name="gate", rank=OUT)], "sigmoid")
    l_ = net.graph.node("Mul", [net.second(net.first()), gate], "gated")
    text = reason(net.done(net.h, l_))
    assert text.startswith("it is multiplied ('gated') by what is computed, as DoRA does")


def test_a_division_is_named(net: Net) -> None:
    l_ = net.graph.node("Div", [net.second(net.first()), net.graph.weight("d")], "halved")
    assert "it is divided by a tensor ('halved')" in reason(net.done(net.h, l_))


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_bias_inside_of_a_branch_is_named(net: Net, letter: str) -> None:
    low = net.first()
    if letter == "A":
        low = net.graph.node("Add", [net.graph.weight("bias", RANK), low], "biased")
    l_ = net.second(low)
    if letter == "B":
        l_ = net.graph.node("Add", [l_, net.graph.weight("bias", OUT)], "biased")
    assert "a bias is added inside of it ('biased')" in reason(net.done(net.h, l_))


@pytest.mark.parametrize("values", [np.zeros(RANK), np.array([0.0, 1e-9])])
def test_a_gemm_may_add_zeros_alone(net: Net, values: Array) -> None:
    graph = net.graph
    rows = graph.node("Reshape", [net.x, graph.constant("s1", np.array([-1, IN]))], "rows")
    bias = graph.constant("bias", values.astype(np.float32))
    low = graph.node("Gemm", [rows, graph.weight("A", IN, RANK), bias], "first")
    high = graph.node("Gemm", [low, graph.weight("B", OUT, RANK)], "second", transB=1)
    back = graph.constant("s2", np.array([2, TOKENS, OUT]))
    found = net.done(net.h, graph.node("Reshape", [high, back], "back"))
    if values.any():
        assert "A ('first') has a bias: a branch is linear" in reason(found)
    else:
        assert len(found.points) == 1


def quantized(net: Net, tensor: str, name: str) -> str:
    graph = net.graph
    scale = graph.constant("q_scale", np.array(0.1, np.float32))
    zero = graph.constant("q_zero", np.array(128, np.uint8))
    codes = graph.node("QuantizeLinear", [tensor, scale, zero], f"{name}/q")
    return graph.node("DequantizeLinear", [codes, scale, zero], f"{name}/dq")


@pytest.mark.parametrize("place", ["between", "behind"])
def test_a_quantized_branch_is_named(net: Net, place: str) -> None:
    low = net.first()
    l_ = net.second(quantized(net, low, "a") if place == "between" else low)
    l_ = quantized(net, l_, "l") if place == "behind" else l_
    assert "it is quantized (QuantizeLinear" in reason(net.done(net.h, l_))


def test_a_quantized_weight_is_named(net: Net) -> None:
    graph = net.graph
    codes = graph.constant("A_codes", np.ones((IN, RANK), np.int8))
    scale = graph.constant("A_scale", np.array(0.1, np.float32))
    weight = graph.node("DequantizeLinear", [codes, scale], "A_dq")
    low = graph.node("MatMul", [net.x, weight], "first")
    text = reason(net.done(net.h, net.second(low)))
    assert text.startswith("the weight of A ('first') is quantized: give the float graph")


def test_weights_that_are_inputs_are_named(net: Net) -> None:
    weight = net.graph.input("A", (IN, RANK))
    low = net.graph.node("MatMul", [net.x, weight], "first")
    text = reason(net.done(net.h, net.second(low)))
    assert text == (
        "A ('first') is no linear node with a constant weight: its weight is a graph input"
    )


def test_weights_without_ranks_are_named(net: Net) -> None:
    """As Olive leaves them, which puts the adapter into a file of its own."""
    low = net.graph.node("MatMul", [net.x, net.graph.weight("A", IN, 0)], "first")
    high = net.graph.node("MatMul", [low, net.graph.weight("B", 0, OUT)], "second")
    assert "its weight is empty, of shape [6, 0]" in reason(net.done(net.h, high))


def test_a_branch_behind_a_residual_sum_is_named(net: Net) -> None:
    other = net.graph.input("residual", (2, TOKENS, OUT))
    h = net.graph.node("Add", [other, net.h], "residual_sum")
    text = reason(net.done(h, net.second(net.first())))
    assert text == "it is added to a sum ('residual_sum'), not to what 'base' gives"


def test_a_branch_behind_an_activation_is_none_of_the_base(net: Net) -> None:
    h = net.graph.node("Relu", [net.h], "relu")
    assert net.done(h, net.second(net.first())).near == ()


def test_a_branch_that_reads_another_tensor_is_named(net: Net) -> None:
    other = net.graph.input("other", (2, TOKENS, IN))
    text = reason(net.done(net.h, net.second(net.first(other))))
    assert text == "A reads 'other', and the base ('base') 'x': expected the same"


def test_a_branch_behind_a_vector_on_x_is_named(net: Net) -> None:
    scaled = net.graph.node("Mul", [net.x, net.graph.weight("h_vector", IN)], "vector")
    text = reason(net.done(net.h, net.second(net.first(scaled))))
    assert text == "A reads what Mul makes of what the base reads, expected the same tensor"


def test_a_pair_of_other_sizes_is_named(net: Net) -> None:
    one = net.second(net.first(), outputs=1)
    text = reason(net.done(net.h, one))
    assert text == "A and B go from 6 to 1 features, and the base ('base') from 6 to 8"


def test_ranks_and_tokens_may_not_be_swapped(tmp_path: Path) -> None:
    net = Net(tmp_path)
    low = net.graph.node("Transpose", [net.first(rank=TOKENS)], "swap", perm=[0, 2, 1])
    text = reason(net.done(net.h, net.second(low, rank=TOKENS)))
    assert text == "B works along another axis than the one that A gives"


def test_tokens_and_batch_may_not_be_swapped(net: Net) -> None:
    turned = net.graph.node("Transpose", [net.x], "turn", perm=[1, 0, 2])
    l_ = net.second(net.first(turned))
    assert "that it adds up elsewhere" in reason(net.done(net.h, l_))


def test_a_reshape_may_not_tear_the_features_apart(net: Net) -> None:
    sizes = net.graph.constant("sizes", np.array([2, IN, TOKENS]))
    torn = net.graph.node("Reshape", [net.x, sizes], "tear")
    back = net.graph.node("Transpose", [torn], "turn", perm=[0, 2, 1])
    text = reason(net.done(net.h, net.second(net.first(back))))
    assert text == "Reshape 'tear' does not leave the features in an axis of their own"


def test_what_reads_the_base_without_the_branch_keeps_it(net: Net) -> None:
    net.graph.output(net.graph.node("Relu", [net.h], "relu"), ("a", "b", "c"))
    text = reason(net.done(net.h, net.second(net.first())))
    assert (
        text == "what the branch is added to, 'base_output_0', is read without the branch as well"
    )


@pytest.mark.parametrize("part", ["first", "second"])
def test_what_reads_a_part_of_the_branch_keeps_it(net: Net, part: str) -> None:
    low = net.first()
    l_ = net.second(low)
    read = low if part == "first" else l_
    net.graph.output(net.graph.node("Relu", [read], "relu"), ("a", "b", "c"))
    text = reason(net.done(net.h, l_))
    assert text == f"'{part}_output_0' belongs to more than the branch: 'relu' (Relu) reads it"


def test_a_part_of_the_branch_may_be_no_output(net: Net) -> None:
    l_ = net.second(net.first())
    net.graph.output(l_, ("a", "b", "c"))
    assert "the graph gives it as an output" in reason(net.done(net.h, l_))


def test_two_branches_that_are_added_first_are_named(net: Net) -> None:
    one, two = (net.second(net.first(name=f"a{n}"), name=f"b{n}") for n in range(2))
    both = net.graph.node("Add", [one, two], "both")
    text = reason(net.done(net.h, both), "both")
    assert "which of the two is the base's is not told" in text


def test_what_follows_a_branch_that_was_not_taken_is_not_taken(net: Net) -> None:
    l_ = net.graph.node("Div", [net.second(net.first()), net.graph.weight("d")], "halved")
    y = net.graph.node("Add", [net.h, l_], "sum0")
    found = net.done(y, net.second(net.first(name="a"), name="b"))
    assert [near.node for near in found.near] == ["sum0", "sum"]
    assert found.near[1].reason == "it is added behind a branch that was not taken"


def test_one_a_for_two_branches_is_taken(net: Net) -> None:
    low = net.first()
    y = net.graph.node("Add", [net.h, net.second(low, name="b0")], "sum0")
    found = net.done(y, net.second(low, name="b1"))
    (point,) = found.points
    assert [branch.a.node for branch in point.branches] == ["first", "first"]
    assert found.near == ()


def test_names_alone_are_reported_once(net: Net) -> None:
    low = net.first(name="/q/lora_A/MatMul")
    active = net.graph.node("Relu", [low], "relu")
    found = net.done(net.h, net.second(active, name="/q/lora_B/MatMul"))
    assert found.points == ()
    assert [near.node for near in found.near] == ["/q/lora_A/MatMul", "/q/lora_B/MatMul"]
    assert found.near[1].reason.startswith("it is named like a part of a branch, and reads what")


def test_a_named_pair_without_a_base_is_reported(net: Net) -> None:
    l_ = net.second(net.first(name="/q/lora_A/MatMul"), name="/q/lora_B/MatMul")
    other = net.graph.input("residual", (2, TOKENS, OUT))
    found = net.done(other, l_)
    (near,) = found.near
    assert near.node == "/q/lora_B/MatMul"
    assert "not added to the output of a linear node that reads the same" in near.reason


def test_what_computes_the_strengths_is_no_part_of_a_branch(net: Net) -> None:
    matrix = net.graph.weight("E", 2, RANK)
    strengths = net.graph.input("lora_alpha", (2,))
    scale = net.graph.node("MatMul", [strengths, matrix], "/lora_alpha/MatMul")
    low = net.graph.node("Mul", [net.first(), scale], "scaled")
    net.graph.output(net.graph.node("Relu", [low], "relu"), ("a", "b", "c"))
    assert "'relu' (Relu) reads it" in reason(net.done(net.h, net.second(low)))


def residual_mlp(graph: GraphBuilder, x: str) -> str:
    low = graph.matmul("up", x, in_features=IN, out_features=16)
    high = graph.matmul("down", low, in_features=16, out_features=IN)
    return graph.node("Add", [x, high], "residual")


def factorised(graph: GraphBuilder, x: str) -> str:
    low = graph.matmul("V", x, in_features=IN, out_features=RANK)
    high = graph.matmul("U", low, in_features=RANK, out_features=IN)
    biased = graph.node("Add", [high, graph.weight("bias", IN)], "biased")
    return graph.node("Add", [biased, x], "residual")


def swiglu(graph: GraphBuilder, x: str) -> str:
    gate = graph.matmul("gate", x, in_features=IN, out_features=16)
    up = graph.matmul("up", x, in_features=IN, out_features=16)
    silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], "sigmoid")], "silu")
    both = graph.node("Mul", [silu, up], "both")
    down = graph.matmul("down", both, in_features=16, out_features=IN)
    return graph.node("Add", [x, down], "residual")


def attention(graph: GraphBuilder, x: str) -> str:
    q, k, v = (graph.matmul(n, x, in_features=IN, out_features=IN) for n in ("q", "k", "v"))
    turned = graph.node("Transpose", [k], "turned", perm=[0, 2, 1])
    scores = graph.node("MatMul", [q, turned], "scores")
    scaled = graph.node("Mul", [scores, graph.weight("root")], "scaled")
    masked = graph.node("Add", [scaled, graph.weight("mask", TOKENS, TOKENS)], "masked")
    mixed = graph.node("MatMul", [graph.node("Softmax", [masked], "softmax"), v], "mixed")
    o = graph.matmul("o", mixed, in_features=IN, out_features=IN)
    return graph.node("Add", [o, x], "residual")


def parallel(graph: GraphBuilder, x: str) -> str:
    """A linear shortcut beside two layers with an activation, as residual blocks have."""
    low = graph.matmul("up", x, in_features=IN, out_features=RANK)
    active = graph.node("Relu", [low], "active")
    high = graph.matmul("down", active, in_features=RANK, out_features=OUT)
    shortcut = graph.matmul("shortcut", x, in_features=IN, out_features=OUT)
    return graph.node("Add", [shortcut, high], "block")


@pytest.mark.parametrize("part", [residual_mlp, factorised, swiglu, attention, parallel])
@pytest.mark.parametrize("behind_linear", [False, True])
def test_an_ordinary_network_has_nothing_like_a_branch(
    tmp_path: Path, part: Callable[[GraphBuilder, str], str], behind_linear: bool
) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (2, TOKENS, IN))
    if behind_linear:
        x = graph.matmul("embed", x, in_features=IN, out_features=IN)
    graph.output(part(graph, x), ("a", "b", "c"))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert (found.points, found.near) == ((), ())


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({"kernel": 1}, {}, "A is a convolution of another kernel, stride or padding"),
        ({"strides": [2]}, {}, "A is a convolution of another kernel, stride or padding"),
        ({"group": 2}, {}, "A is a convolution of 2 groups, expected one that reads all"),
        ({}, {"group": 2}, "B is a convolution of 2 groups, expected 1 or the base's 1"),
        ({}, {"kernel": 3}, "B ('second') does not work on each position alone"),
        ({}, {"strides": [2]}, "B ('second') does not work on each position alone"),
    ],
)
def test_a_convolution_of_another_geometry_is_named(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], text: str
) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, IN, 5))

    def conv(name: str, x: str, sizes: tuple[int, int], kernel: int, **given: Any) -> str:
        group = given.get("group", 1)
        weight = graph.weight(f"{name}.w", sizes[0], sizes[1] // group, kernel)
        pads = [kernel // 2] * 2
        return graph.node("Conv", [x, weight], name, pads=pads, **given)

    h = conv("base", x, (OUT, IN), 3)
    low = conv("first", x, (RANK, IN), **{"kernel": 3, **first})
    l_ = conv("second", low, (OUT, RANK), **{"kernel": 1, **second})
    graph.output(graph.node("Add", [h, l_], "sum"), ("a", "b", "c"))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert text in reason(found)


@pytest.mark.parametrize("base_is_named", [False, True])
def test_padding_of_nothing_is_the_same_by_either_of_its_names(
    tmp_path: Path, base_is_named: bool
) -> None:
    """auto_pad VALID pads nothing, whatever pads stand beside it; NOTSET pads what pads say."""
    graph = GraphBuilder()
    x = graph.input("x", (1, IN, 5))
    spelled: tuple[dict[str, Any], dict[str, Any]] = (
        {"auto_pad": "VALID", "pads": [1, 1]},
        {"pads": [0, 0]},
    )
    one, other = reversed(spelled) if base_is_named else spelled
    h = graph.node("Conv", [x, graph.weight("base.w", OUT, IN, 3)], "base", **other)
    low = graph.node("Conv", [x, graph.weight("first.w", RANK, IN, 3)], "first", **one)
    l_ = graph.node("Conv", [low, graph.weight("second.w", OUT, RANK, 1)], "second")
    graph.output(graph.node("Add", [h, l_], "sum"), ("a", "b", "c"))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert [point.y for point in found.points] == ["sum_output_0"]


def test_a_transposed_input_of_a_branch_is_named(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (TOKENS, IN))
    h = graph.matmul("base", x, in_features=IN, out_features=OUT)
    turned = graph.node("Transpose", [x], "turned", perm=[1, 0])
    low = graph.node("Gemm", [turned, graph.weight("A", IN, RANK)], "first", transA=1)
    l_ = graph.matmul("second", low, in_features=RANK, out_features=OUT)
    graph.output(graph.node("Add", [h, l_], "sum"), ("a", "b"))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert reason(found) == "A ('first') reads its input transposed (transA)"


def test_a_reshape_whose_sizes_are_computed_keeps_rows_alone(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", "tokens", IN))
    h = graph.matmul("base", x, in_features=IN, out_features=OUT)
    rows = graph.node("Reshape", [x, graph.constant("rows", np.array([-1, IN]))], "flat")
    low = graph.node("Gemm", [rows, graph.weight("A", IN, RANK)], "first")
    high = graph.node("Gemm", [low, graph.weight("B", RANK, OUT)], "second")
    l_ = graph.node("Reshape", [high, graph.node("Shape", [h], "shape")], "back")
    graph.output(graph.node("Add", [h, l_], "sum"), ("batch", "tokens", OUT))
    found = recognise_branches(opened(graph.model(), tmp_path))
    # The shape is read from h, which is more than the sum that the branch adds to.
    assert reason(found) == (
        "what the branch is added to, 'base_output_0', is read without the branch as well"
    )


def test_a_reshape_to_the_shape_of_x_is_followed(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", "tokens", IN))
    h = graph.matmul("base", x, in_features=IN, out_features=OUT)
    rows = graph.node("Reshape", [x, graph.constant("rows", np.array([-1, IN]))], "flat")
    low = graph.node("Gemm", [rows, graph.weight("A", IN, RANK)], "first")
    high = graph.node("Gemm", [low, graph.weight("B", RANK, OUT)], "second")
    front = graph.node("Shape", [x], "shape", end=2)
    sizes = graph.node("Concat", [front, graph.constant("o", np.array([OUT]))], "sizes", axis=0)
    l_ = graph.node("Reshape", [high, sizes], "back")
    graph.output(graph.node("Add", [h, l_], "sum"), ("batch", "tokens", OUT))
    found = recognise_branches(opened(graph.model(), tmp_path))
    assert found.near == ()
    (point,) = found.points
    assert point.branches[0].relayouts == ("flat_output_0", "back_output_0")
    # The nodes that compute its sizes go as well.
    assert len(point.branches[0].nodes) == len(graph.nodes) - 1
