"""Branches on nodes that compute equal values: what reads them tells which has the branch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.exported.compare import compare_with_base
from lora_quant.graph.exported.comparison.trunk import trunk_of
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import Correspondence
from tests.builders import GraphBuilder

SIZE = 4
WEIGHT = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)


def twins(path: Path, branches: str = "", *, order: str = "qk", merged: str = "") -> Path:
    """x -> q, k (one weight) -> Relu each -> y_q, y_k; names of nodes and tensors are numbers.

    `order`: of the nodes. `merged`: "base" for one MatMul of both, "relu" for one Relu as well.
    """
    graph = GraphBuilder()
    x = graph.input("x", ("batch", SIZE))
    graph.constant("w", WEIGHT)
    count = iter(range(100))

    def node(op: str, *inputs: str) -> str:
        number = next(count)
        return graph.node(op, list(inputs), f"n{number}", f"t{number}")

    made: dict[str, str] = {}
    for module in order:
        product = made["base"] if merged and made else node("MatMul", x, "w")
        made.setdefault("base", product)
        if module in branches:
            graph.weight(f"a_{module}", SIZE, 2)
            graph.weight(f"b_{module}", 2, SIZE)
            low = node("MatMul", x, f"a_{module}")
            product = node("Add", product, node("MatMul", low, f"b_{module}"))
        shared = merged == "relu" and "relu" in made
        made[module] = made["relu"] if shared else node("Relu", product)
        made["relu"] = made[module]
    for module in "qk":
        graph.node("Neg", [made[module]], f"end_{module}", f"y_{module}")
        graph.output(f"y_{module}", ("batch", SIZE))
    return graph.save(path)


def compare(base: Path, other: Path) -> Correspondence:
    return compare_with_base(trunk_of(open_base(base), {}), recognise_branches(open_base(other)))


def relu_behind(path: Path, product: str) -> str:
    """The output of the graph that a product of the base leads to."""
    index = open_base(path).index
    tensor = product
    while index.sole_consumer(tensor) is not None:
        consumer = index.sole_consumer(tensor)
        assert consumer is not None
        tensor = consumer.output[0]
    return tensor


@pytest.mark.parametrize("order", ["qk", "kq"])
@pytest.mark.parametrize("module", ["q", "k"])
def test_readers_tell_which_of_two_equal_nodes_has_the_branch(
    module: str, order: str, tmp_path: Path
) -> None:
    """t0 is q's product in the one graph, and k's in the other: names and order mislead."""
    base = twins(tmp_path / "base.onnx")
    other = twins(tmp_path / "other.onnx", module, order=order)
    found = compare(base, other)
    (point,) = recognise_branches(open_base(other)).points
    assert relu_behind(base, found.tensors[point.linear.product]) == f"y_{module}"


@pytest.mark.parametrize("branches", ["q", "qk"])
@pytest.mark.parametrize("merged", ["base", "relu"])
def test_a_base_that_has_one_node_for_two_is_refused(
    merged: str, branches: str, tmp_path: Path
) -> None:
    base = twins(tmp_path / "base.onnx", merged=merged)
    with pytest.raises(GraphError, match="another node of the graph or of the base") as caught:
        compare(base, twins(tmp_path / "other.onnx", branches))
    assert caught.value.hint is not None
    assert "without merging equal nodes" in caught.value.hint
