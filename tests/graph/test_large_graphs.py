"""Nothing is quadratic: a graph of 6000 nodes and 560 branches takes moments."""

from __future__ import annotations

from pathlib import Path

from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.base.graph_bytes import graph_bytes
from tests.builders import GraphBuilder
from tests.graph.helpers import branch, request, resolve
from tests.timing import cpu_seconds

LAYERS, LEAVES, FILLERS = 80, ("q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down"), 68


def make_large(path: Path, layers: int) -> Path:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    for layer in range(layers):
        prefix = f"/model/layers.{layer}/block"
        for leaf in LEAVES:
            x = graph.matmul(f"{prefix}/{leaf}/MatMul", x, in_features=4, out_features=4)
            graph.value(x, ("N", 4))
        for number in range(FILLERS):
            x = graph.node("Relu", [x], f"{prefix}/Relu_{number}")
    graph.output(x, ("N", 4))
    return graph.save(path)


def seconds(path: Path, layers: int) -> float:
    make_large(path, layers)
    requests = [
        request(f"model.layers.{layer}.block.{leaf}", 4, 4, adapter=adapter)
        for adapter in ("tone", "legal")
        for layer in range(layers)
        for leaf in LEAVES
    ]

    def steps() -> None:
        base = open_base(path)
        branched = branch(base, resolve(base, requests).points, max_rank=16)
        data = graph_bytes(base, [], "zeros.data")
        assert len(branched.branches) == layers * len(LEAVES)
        assert len(data) > path.stat().st_size

    return cpu_seconds(steps)


def test_a_graph_of_6000_nodes(tmp_path: Path) -> None:
    # Measured 0.2 s of processor time; the limit is what the slowest machine may take.
    assert LAYERS * (len(LEAVES) + FILLERS) == 6000
    assert seconds(tmp_path / "large.onnx", LAYERS) < 2.0


def test_time_grows_with_the_nodes(tmp_path: Path) -> None:
    small, large = (
        min(seconds(tmp_path / "any.onnx", layers) for _ in range(3)) for layers in (20, 80)
    )
    # Four times the nodes; a quadratic step would take sixteen times as long.
    assert large < 10 * small + 0.1
