"""A ratio per rank multiplies s, and changes nothing where it is 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.branching.branches import add_branches
from lora_quant.graph.device.rank_ratios import RankRatio, add_rank_ratios
from lora_quant.graph.records import BranchedGraph
from tests.graph.helpers import all_points, opened
from tests.targets.qnn_case import convolution, mlp

Array = NDArray[Any]
MAX_RANK = 3


def branched(model: ModelProto, folder: Path) -> tuple[ModelProto, BranchedGraph]:
    """The graph with branches of random weights and a strength of 1."""
    base = opened(model, folder)
    made = add_branches(
        base,
        all_points(base),
        max_rank=MAX_RANK,
        slot_count=2,
        alpha_name="alpha",
        alpha_layout="slot",
    )
    rng = np.random.default_rng(5)
    for tensor in base.model.proto.graph.initializer:
        if ".lora_" in tensor.name or "expansion" in tensor.name:
            values = rng.standard_normal(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return base.model.proto, made


def run(proto: ModelProto) -> Array:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(6)
    feeds = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs()}
    result: Array = session.run(None, feeds)[0]
    return result


def fill(proto: ModelProto, ratios: tuple[RankRatio, ...], value: float) -> None:
    names = {ratio.weight.name: ratio.weight.shape for ratio in ratios}
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            values = np.full(names[tensor.name], value, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("model", [mlp([1, 4], bias=True), convolution()], ids=["mlp", "conv"])
def test_a_ratio_of_one_changes_no_bit_and_one_of_two_doubles_the_branch(
    model: ModelProto, tmp_path: Path
) -> None:
    proto, made = branched(model, tmp_path)
    before = run(proto)
    ratios = add_rank_ratios(proto, made.branches, Where())
    assert [ratio.branch for ratio in ratios] == list(made.branches)
    fill(proto, ratios, 1.0)
    np.testing.assert_array_equal(run(proto), before)
    fill(proto, ratios, 2.0)
    with_ratio = run(proto)
    fill(proto, ratios, 1.0)
    for tensor in proto.graph.initializer:
        if tensor.name == "alpha.expansion":
            doubled = 2 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(doubled, tensor.name))
    # Doubling is exact in floating point, wherever it is done.
    np.testing.assert_array_equal(with_ratio, run(proto))


def test_ratios_are_zero_until_they_are_given(tmp_path: Path) -> None:
    model = mlp([1, 4], bias=False)
    proto, made = branched(model, tmp_path)
    add_rank_ratios(proto, made.branches, Where())
    feeds_last = run(proto)
    plain = ModelProto()
    plain.CopyFrom(model)
    np.testing.assert_array_equal(feeds_last, run(plain))


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    model = mlp([1, 4], bias=False)
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["up.lora_ratio"], name="other"))
    proto, made = branched(model, tmp_path)
    with pytest.raises(GraphError, match=r"already has a tensor or node named 'up.lora_ratio'"):
        add_rank_ratios(proto, made.branches, Where())
