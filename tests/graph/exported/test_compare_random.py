"""Random graphs against their disguises, and against those of a graph with one difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.exported.compare import compare_with_base
from lora_quant.graph.exported.comparison.trunk import trunk_of
from lora_quant.graph.exported.records import Correspondence, ExportedGraph, FoundPoint
from tests.graph.exported.disguised import BINARY, Disguised, disguise, live_nodes, random_graph

Array = NDArray[Any]
randoms = st.randoms(use_true_random=False)


def opened(model: ModelProto) -> BaseGraph:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return open_base(path)


def compared(base: ModelProto, other: Disguised) -> Correspondence:
    graph = opened(other.model)
    linears = graph.catalog.linears
    linear = next(iter(linears.values())) if linears else None
    points = [FoundPoint(linear, h, y, ()) for y, h in other.sums.items() if linear]
    return compare_with_base(trunk_of(opened(base), {}), ExportedGraph(graph, tuple(points), ()))


def all_values(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of a graph as ONNX Runtime computes it, nothing optimized."""
    given = {value.name for value in model.graph.input}
    opened = ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    names = [name for node in opened.graph.node for name in node.output]
    opened.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    found.update((t.name, numpy_helper.to_array(t)) for t in opened.graph.initializer)
    return found | {name: feeds[name] for name in given}


@settings(max_examples=50)
@given(randoms)
def test_a_disguised_graph_is_the_base_and_its_tensors_are_found(random: Random) -> None:
    base = random_graph(random)
    other = disguise(base, random, renamed=random.random() < 0.7)
    tensors = compared(base, other).tensors
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    wanted = all_values(base, dict(zip(("x", "z"), values, strict=True)))
    inputs = [value.name for value in other.model.graph.input]
    got = all_values(other.model, dict(zip(inputs, values, strict=True)))
    for name, partner in tensors.items():
        # The same operations on the same numbers; the branches' B are zero.
        np.testing.assert_array_equal(got[name], wanted[partner])
    live = live_nodes(base)
    needed = {name for node in live for name in (*node.input, *node.output)}
    assert set(tensors.values()) >= needed
    assert not set(tensors) & (set(other.sums) - set(wanted))


@settings(max_examples=30)
@given(randoms)
def test_names_that_stay_are_paired_with_themselves(random: Random) -> None:
    base = random_graph(random)
    other = disguise(base, random, renamed=False)
    found = compared(base, other)
    own = {name for node in live_nodes(base) for name in (*node.input, *node.output)}
    assert {n: p for n, p in found.tensors.items() if n in own and n not in other.sums} == {
        name: name for name in own if name not in other.sums
    }


def mutate(model: ModelProto, kind: str, random: Random) -> str:
    """Make one difference; returns the name of the node or tensor where it is."""
    graph = model.graph
    live = live_nodes(model)
    outputs = {value.name for value in graph.output}

    def one(fits: list[NodeProto]) -> NodeProto:
        assume(fits)
        return random.choice(fits)

    if kind == "attribute":
        node = one([n for n in live if n.op_type == "LeakyRelu"])
        node.attribute[0].f += 2.0
    elif kind == "operator":
        node = one([n for n in live if n.op_type in BINARY])
        node.op_type = BINARY[(BINARY.index(node.op_type) + 1) % 3]
    elif kind == "order":
        node = one([n for n in live if n.op_type in BINARY and n.input[0] != n.input[1]])
        node.input[:] = list(reversed(node.input))
    elif kind == "bit":
        weights = {n.input[1] for n in live if n.op_type == "MatMul" or "bias" in n.input[-1]}
        tensor = random.choice([t for t in graph.initializer if t.name in weights] or [None])
        assume(tensor is not None)
        data = bytearray(tensor.raw_data)
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        tensor.raw_data = bytes(data)
        return str(tensor.name)
    elif kind == "removed":
        node = one([n for n in live if n.op_type == "LeakyRelu" and n.output[0] not in outputs])
        _redirect(model, node.output[0], node.input[0])
        graph.node.remove(node)
    elif kind == "extra":
        node = one(live)
        made = helper.make_node("Erf", [node.output[0]], ["extra_out"], name="extra")
        _redirect(model, node.output[0], "extra_out")
        graph.node.insert(list(graph.node).index(node) + 1, made)
        return "extra"
    else:
        node = one([n for n in live if n.op_type == "Add" and "bias" in n.input[1]])
        tensor = next(t for t in graph.initializer if t.name == node.input[1])
        tensor.dims.insert(0, 1)
        return str(tensor.name)
    return str(node.name)


def _redirect(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name


def are_alike(model: ModelProto) -> bool:
    """Whether two nodes compute the same."""
    keys = Counter(
        (n.op_type, tuple(n.input), tuple(a.SerializeToString() for a in n.attribute))
        for n in model.graph.node
    )
    return max(keys.values()) > 1


@pytest.mark.parametrize(
    "kind", ["attribute", "operator", "order", "bit", "removed", "extra", "shape"]
)
@settings(max_examples=30)
@given(random=randoms)
def test_one_difference_is_named(kind: str, random: Random) -> None:
    base = random_graph(random, distinct=True)
    changed = ModelProto()
    changed.CopyFrom(base)
    place = mutate(changed, kind, random)
    assume(not are_alike(changed))
    other = disguise(changed, random, renamed=random.random() < 0.7)
    with pytest.raises(GraphError) as caught:
        compared(base, other)
    if kind == "removed":
        assert f"lacks the base's node {place!r}" in caught.value.message
        return
    name = other.names.get(place, place)
    where = caught.value.where
    assert name in (where.node, where.tensor) or repr(name) in caught.value.message
