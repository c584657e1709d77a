"""Scale and zero point of l as scalars, where the output of the base is dequantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant.errors import GraphError
from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.opened.open_scalars import scalar_grids
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import ActivationQdq
from lora_quant.graph.records import BranchedGraph
from tests.builders import attention
from tests.graph.helpers import all_points, branch, opened
from tests.graph.quantized_bases import BASES, built

GRID = Grid("uint8", np.array([0.05], np.float32), np.array([128], np.uint8))


def dressed(graph: OpenGraph, made: BranchedGraph, *, overridable: bool = True) -> OpenGraph:
    asked = {
        tensor: ActivationQdq(GRID, overridable)
        for one in made.branches
        for tensor in (one.a, one.m, one.l)
    }
    insert_qdq(graph.proto, activations=asked, weights={})
    return graph


def squeezed(graph: OpenGraph) -> set[str]:
    return {node.input[0] for node in graph.proto.graph.node if node.op_type == "Squeeze"}


def test_only_l_reads_scalars_and_only_beside_a_dequantized_h(tmp_path: Path) -> None:
    base = opened(built(BASES[0])[0], tmp_path)
    made = branch(base, all_points(base))
    graph = dressed(OpenGraph(base), made)
    scalar_grids(graph, made.branches)
    wanted = {f"{one.l}_{part}" for one in made.branches for part in ("scale", "zero_point")}
    assert squeezed(graph) == wanted
    for node in graph.proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert wanted.isdisjoint(node.input)
    inputs = {value.name: value for value in graph.proto.graph.input}
    assert all(len(inputs[name].type.tensor_type.shape.dim) == 1 for name in wanted)


def test_a_float_base_and_constant_grids_stay_as_they_are(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    made = branch(base, all_points(base))
    graph = dressed(OpenGraph(base), made)
    scalar_grids(graph, made.branches)
    assert squeezed(graph) == set()
    base = opened(built(BASES[0])[0], tmp_path)
    made = branch(base, all_points(base))
    graph = dressed(OpenGraph(base), made, overridable=False)
    scalar_grids(graph, made.branches)
    assert squeezed(graph) == set()


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    base = opened(built(BASES[0])[0], tmp_path)
    made = branch(base, all_points(base))
    graph = dressed(OpenGraph(base), made)
    graph.claim(f"{made.branches[0].l}_scale_scalar")
    with pytest.raises(GraphError, match="already has a tensor or node named"):
        scalar_grids(graph, made.branches)
