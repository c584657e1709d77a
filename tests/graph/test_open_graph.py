"""Inputs with defaults in a copy of a graph: what is stored where, and in linear time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lora_quant.errors import GraphError
from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.opened.open_ranks import RankAxis, open_ranks
from lora_quant.graph.records import TensorRecord
from tests.builders import attention
from tests.graph.helpers import all_points, branch, opened
from tests.timing import cpu_seconds


def parts(graph: OpenGraph) -> tuple[dict[str, TensorProto], dict[str, list[int | str]]]:
    stored = {tensor.name: tensor for tensor in graph.proto.graph.initializer}
    inputs = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.proto.graph.input
    }
    return stored, inputs


def test_a_new_input_has_a_default_and_an_open_axis(tmp_path: Path) -> None:
    graph = OpenGraph(opened(attention(layers=1).model(), tmp_path))
    record = graph.overridable("codes", "int8", (4, "n"), np.zeros((4, 1), np.int8))
    assert record == TensorRecord("codes", (4, -1), "int8")
    assert graph.inputs == [record]
    stored, inputs = parts(graph)
    assert inputs["codes"] == [4, "n"]
    assert (list(stored["codes"].dims), stored["codes"].data_type) == ([4, 1], TensorProto.INT8)


def test_a_weight_of_the_base_keeps_its_values(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    name = next(iter(base.index.initializers))
    before = base.index.initializers[name].SerializeToString()
    graph = OpenGraph(base)
    graph.overridable(name, "float32", base.index.initializers[name].dims)
    stored, inputs = parts(graph)
    assert stored[name].SerializeToString() == before
    assert name in inputs


@pytest.mark.parametrize("external", [False, True])
def test_large_zeros_are_where_the_weights_of_the_base_are(external: bool, tmp_path: Path) -> None:
    graph = OpenGraph(opened(attention(layers=1).model(), tmp_path, external=external))
    for name, size in (("small", 1024), ("large", 1025)):
        graph.zero(TensorRecord(name, (size,), "float32"))
        graph.overridable(name, "float32", (size,))
    data = onnx.load_model_from_string(graph.data("zeros.data"))
    stored = {tensor.name: tensor for tensor in data.graph.initializer}
    assert stored["small"].raw_data == bytes(4096)
    assert graph.zeros.block_size == (4100 if external else 0)
    if not external:
        assert stored["large"].raw_data == bytes(4100)
        return
    entries = {entry.key: entry.value for entry in stored["large"].external_data}
    assert entries == {"location": "zeros.data", "offset": "0", "length": "4100"}


def test_what_is_dropped_frees_its_name(tmp_path: Path) -> None:
    graph = OpenGraph(opened(attention(layers=1).model(), tmp_path))
    name = graph.claim("mine")
    with pytest.raises(GraphError, match="already has a tensor or node named 'mine'"):
        graph.claim("mine")
    graph.constant(name, np.zeros(1, np.float32))
    graph.drop([name])
    graph.apply()
    assert name not in parts(graph)[0]
    assert graph.claim(name) == name


def seconds(folder: Path, layers: int) -> float:
    base = opened(attention(layers=layers).model(), folder)
    made = branch(base, all_points(base))

    def steps() -> None:
        axes = [
            RankAxis(number, tuple(one.attach.name for one in made.branches[number::4]))
            for number in range(4)
        ]
        graph = OpenGraph(base)
        open_ranks(graph, made, axes)
        graph.apply()
        assert graph.data("zeros.data")

    return cpu_seconds(steps)


def test_time_grows_with_the_branches(tmp_path: Path) -> None:
    small, large = (min(seconds(tmp_path, layers) for _ in range(3)) for layers in (40, 160))
    # Four times the branches; a quadratic step would take sixteen times as long.
    assert large < 10 * small + 0.1
