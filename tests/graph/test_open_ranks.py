"""Rank axes of their own for the branches of a graph, and inputs with defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.opened.open_ranks import RankAxis, open_ranks
from lora_quant.graph.records import BranchedGraph, Gate, TensorRecord
from tests.builders import GraphBuilder, attention
from tests.graph.helpers import all_points, branch, opened, printed, with_extras

Array = NDArray[Any]
RANK = 3


def convolutions(opset: int) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 4, "height", "width"))
    w = graph.weight("conv.weight", 6, 4, 3, 3)
    y = graph.node("Conv", [x, w], "/conv/Conv", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph.output(y, ("batch", 6, "height", "width"))
    return graph.model(opset=opset)


def opened_ranks(
    base: BaseGraph, made: BranchedGraph, *, width: int | None = None, default: int = 1
) -> OpenGraph:
    """All points on one axis, with float weights as inputs."""
    names = tuple(one.attach.name for one in made.branches)
    axis = RankAxis(0, names, width, default)
    graph = OpenGraph(base)
    open_ranks(graph, made, [axis])
    for one in made.branches:
        for record, on_first in ((one.a_weight, False), (one.b_weight, True)):
            place = int(on_first == (one.attach.linear.conv is not None))
            shape: list[int] = list(record.shape)
            shape[place] = axis.default_size
            graph.zero(TensorRecord(record.name, tuple(shape), record.dtype))
            dims: list[int | str] = list(shape)
            dims[place] = axis.size
            graph.overridable(record.name, record.dtype, dims)
    graph.apply()
    return graph


def run(model: ModelProto, feeds: dict[str, Array]) -> Array:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    return np.asarray(found)


def sizes(model: ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info)
    }


def weight_of(leaf: str) -> str:
    return f"model.layers.0.self_attn.{leaf}_proj.weight"


def test_the_shared_scale_gives_way_to_one_of_the_axis(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    made = branch(base, all_points(base))
    graph = opened_ranks(base, made)
    front = [node.op_type for node in graph.proto.graph.node][:2]
    assert front == ["MatMul", "MatMul"]
    first = graph.proto.graph.node[0]
    assert list(first.input) == ["lora_alpha", "lora_alpha.expansion_0"]
    assert "lora_alpha.expansion" not in {t.name for t in graph.proto.graph.initializer}
    read = {name for node in graph.proto.graph.node for name in node.input}
    made_names = {name for node in graph.proto.graph.node for name in node.output}
    known = made_names | {t.name for t in graph.proto.graph.initializer} | {"x"}
    assert read <= known
    assert "lora_alpha.expansion" in {t.name for t in base.model.proto.graph.initializer}


def test_inputs_and_activations_name_the_axis(tmp_path: Path) -> None:
    model = attention(layers=1)
    for node in model.nodes:
        model.value(node.output[0], ("batch", "sequence", 8))
    base = opened(model.model(), tmp_path)
    made = branch(base, all_points(base))
    told = sizes(opened_ranks(base, made).proto)
    for one in made.branches:
        assert told[one.a_weight.name][1] == told[one.b_weight.name][0] == "lora_rank_0"
        for tensor in (one.a, one.m):
            assert told[tensor][-1] == "lora_rank_0"
    assert told["lora_alpha.expansion_0"] == [2, "lora_rank_0"]


@pytest.mark.parametrize("default", [0, 1])
def test_any_number_of_ranks_is_fed(default: int, tmp_path: Path) -> None:
    """Every output is a sum of at most 8 + 3 products of numbers below 8, rounded each time."""
    model = attention(layers=1)
    base = opened(model.model(), tmp_path)
    made = branch(base, all_points(base))
    graph = opened_ranks(base, made, default=default).proto
    x = np.random.default_rng(0).normal(size=(1, 2, 8)).astype(np.float32)
    wanted = run(model.model(), {"x": x})
    np.testing.assert_array_equal(run(graph, {"x": x}), wanted)
    o = next(one for one in made.branches if one.attach.name.endswith("o_proj"))
    rng = np.random.default_rng(1)
    for rank in (1, 2, 5):
        B = rng.normal(size=(rank, 8)).astype(np.float32)
        A = rng.normal(size=(16, rank)).astype(np.float32)
        feeds = {
            "x": x,
            "lora_alpha": np.array([0.5, 0], np.float32),
            "lora_alpha.expansion_0": np.full((2, rank), 2, np.float32),
            o.a_weight.name: A,
            o.b_weight.name: B,
        }
        for one in made.branches:
            if one is not o:
                out = one.b_weight.shape[1]
                feeds[one.a_weight.name] = np.zeros((8, rank), np.float32)
                feeds[one.b_weight.name] = np.zeros((rank, out), np.float32)
        weights = {name: w.astype(np.float64) for name, w in model.weights.items()}
        qkv = np.concatenate([x @ weights[weight_of(leaf)] for leaf in ("q", "k", "v")], -1)
        update = qkv @ A.astype(np.float64) @ B.astype(np.float64)
        expected = x + qkv @ weights[weight_of("o")] + update
        bound = 2.0**-24 * 32 * np.abs(expected).max()
        assert np.abs(run(graph, feeds) - expected).max() <= bound


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_convolutions_read_the_strengths_of_their_channels(opset: int, tmp_path: Path) -> None:
    base = opened(convolutions(opset), tmp_path)
    made = branch(base, all_points(base))
    graph = opened_ranks(base, made).proto
    assert [node.op_type for node in graph.graph.node][:2] == ["MatMul", "Unsqueeze"]
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32)
    wanted = run(convolutions(opset), {"x": x})
    np.testing.assert_array_equal(run(graph, {"x": x}), wanted)
    (one,) = made.branches
    feeds = {
        "x": x,
        "lora_alpha": np.array([1, 0], np.float32),
        "lora_alpha.expansion_0": np.array([[1, 2, 3], [0, 0, 0]], np.float32),
        one.a_weight.name: np.zeros((3, 4, 3, 3), np.float32),
        one.b_weight.name: np.zeros((6, 3, 1, 1), np.float32),
    }
    feeds[one.a_weight.name][:, 0, 1, 1] = 1
    feeds[one.b_weight.name][5, :, 0, 0] = 1
    on = run(graph, feeds)
    np.testing.assert_array_equal(on[:, :5], wanted[:, :5])
    # 1 + 2 + 3 times the first channel: multiples by small whole numbers, summed twice
    np.testing.assert_allclose(on[:, 5], wanted[:, 5] + 6 * x[:, 0], rtol=0, atol=4 * 2.0**-24 * 32)


def test_a_fixed_axis_keeps_its_length(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    made = branch(base, all_points(base))
    graph = opened_ranks(base, made, width=RANK)
    told = sizes(graph.proto)
    assert told["lora_alpha.expansion_0"] == [2, RANK]
    assert {record.shape[0] for record in graph.inputs if "lora_B" in record.name} == {RANK}
    open_sizes = [size for dims in told.values() for size in dims if isinstance(size, str)]
    assert not any(size.startswith("lora_rank") for size in open_sizes)


def test_ranks_as_strengths_become_slots(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    points = [with_extras(point, gates={Gate.INPUT}) for point in all_points(base)]
    made = branch(base, points, alpha_layout="rank")
    assert sizes(base.model.proto)["lora_alpha"] != [2]
    told = sizes(opened_ranks(base, made).proto)
    assert told["lora_alpha"] == [2]
    assert told["lora_alpha_gate"][2] == 2


def test_half_precision_is_cast_behind_the_product(tmp_path: Path) -> None:
    base = opened(attention(layers=1, dtype="float16").model(), tmp_path)
    made = branch(base, all_points(base))
    graph = opened_ranks(base, made).proto
    assert [node.op_type for node in graph.graph.node][:2] == ["MatMul", "Cast"]
    elements = {value.name: value.type.tensor_type.elem_type for value in graph.graph.input}
    assert elements["lora_alpha.expansion_0"] == onnx.TensorProto.FLOAT
    assert elements[made.branches[0].a_weight.name] == onnx.TensorProto.FLOAT16


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    model = attention(layers=1)
    model.constant("lora_alpha.expansion_0", np.zeros(1, np.float32))
    base = opened(model.model(), tmp_path)
    made = branch(base, all_points(base))
    with pytest.raises(GraphError, match=r"already has .* 'lora_alpha.expansion_0'") as caught:
        opened_ranks(base, made)
    assert caught.value.where.tensor == "lora_alpha.expansion_0"


def test_the_branched_graph_stays_as_it_was(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    made = branch(base, all_points(base))
    before = printed(base.model.proto.graph)
    opened_ranks(base, made)
    assert printed(base.model.proto.graph) == before
