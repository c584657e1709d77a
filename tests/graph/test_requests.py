"""What adapters of other kinds than plain low rank ask of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.errors import AttachPointError
from lora_quant.graph.attach.resolver import ModuleRequest, ModuleSizes
from lora_quant.graph.records import Gate, ModulePart, Vector
from tests.builders import GraphBuilder, attention
from tests.graph.helpers import opened, resolve
from tests.graph.requests import asked

ATTENTION = "model.layers.0.self_attn"
Q0, K0, V0 = (f"{ATTENTION}.{leaf}_proj" for leaf in "qkv")


def test_sizes_that_files_do_not_tell_are_those_of_the_node(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    for known in ((None, None), (8, None), (None, 4)):
        resolution = resolve(base, [asked(V0, *known)])
        assert resolution.sizes == {V0: ModuleSizes(8, 4)}
        point, part = resolution.place(V0)
        assert (point.name, part) == (V0, ModulePart(V0, 0, 4))
    with pytest.raises(AttachPointError, match="has 5 output features, the node computes 4"):
        resolve(base, [asked(V0), asked(V0, out_features=5, adapter="legal")])
    with pytest.raises(AttachPointError, match=r"the adapter is for input \[9\]"):
        resolve(base, [asked(V0, 9, low_rank=False)])


def test_a_module_that_nobody_asked_for_has_no_place(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(AttachPointError, match="was not asked for") as caught:
        resolve(base, [asked(V0)]).place("model.v_proj")
    assert f"did you mean {V0!r}" in str(caught.value)


def test_a_point_has_what_any_adapter_needs(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    vectors = frozenset({Vector.G, Vector.C})
    requests = [
        asked(Q0, low_rank=False, vectors=vectors),
        asked(Q0, 8, 8, adapter="legal", vectors=frozenset({Vector.H})),
        asked(Q0, 8, 8, adapter="gated", gates=frozenset({Gate.INPUT})),
        asked(K0, low_rank=False, vectors=vectors),
        asked(V0, 8, 4),
    ]
    q, k, v = resolve(base, requests).points
    assert (q.low_rank, q.vectors, q.gates) == (True, frozenset(Vector), frozenset({Gate.INPUT}))
    assert (k.low_rank, k.vectors, k.gates) == (False, vectors, frozenset())
    assert (v.low_rank, v.vectors, v.gates) == (True, frozenset(), frozenset())


def packed(folder: Path, requests: list[ModuleRequest]) -> dict[str, ModuleSizes]:
    base = opened(attention(layers=1, style="packed").model(), folder)
    return dict(resolve(base, requests).sizes)


def test_parts_of_a_fused_projection_share_what_they_read(tmp_path: Path) -> None:
    vectors = frozenset({Vector.G, Vector.C})
    known = asked(K0, 8, 4, low_rank=False, vectors=vectors)
    assert packed(tmp_path, [known, asked(V0), asked(Q0)]) == {
        Q0: ModuleSizes(8, 8),
        K0: ModuleSizes(8, 4),
        V0: ModuleSizes(8, 4),
    }
    with pytest.raises(AttachPointError, match="scales its inputs, which other projections") as e:
        packed(tmp_path, [asked(K0, 8, 4, vectors=frozenset({Vector.H}))])
    assert "export the graph without fusing projections" in str(e.value)
    with pytest.raises(AttachPointError, match="no adapter tells the size of q_proj, k_proj or v"):
        packed(tmp_path, [asked(K0), asked(Q0, 8)])


def test_halves_of_a_fused_projection_need_no_sizes(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    graph.output(
        graph.matmul("/mlp/gate_up_proj/MatMul", x, in_features=4, out_features=6), ("N", 6)
    )
    base = opened(graph.model(), tmp_path)
    (point,) = resolve(base, [asked("mlp.up_proj"), asked("mlp.gate_proj")]).points
    assert [(part.offset, part.size) for part in point.parts] == [(0, 3), (3, 3)]


def test_an_odd_node_has_no_halves(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    graph.output(
        graph.matmul("/mlp/gate_up_proj/MatMul", x, in_features=4, out_features=7), ("N", 7)
    )
    base = opened(graph.model(), tmp_path)
    with pytest.raises(AttachPointError, match="gate and up would have 3 and 4 rows"):
        resolve(base, [asked("mlp.up_proj")])


def convolution(kernel: tuple[int, ...], groups: int) -> GraphBuilder:
    graph = GraphBuilder()
    x = graph.input("x", (1, 4, 6, 6))
    w = graph.weight("conv.weight", 6, 4 // groups, *kernel)
    graph.output(graph.node("Conv", [x, w], "/conv/Conv", group=groups), ("N", "C", "H", "W"))
    return graph


def test_groups_of_the_adapter_are_those_of_the_convolution(tmp_path: Path) -> None:
    base = opened(convolution((3, 3), 2).model(), tmp_path)
    wanted = asked("conv", 4, 6, (3, 3), groups=2)
    assert resolve(base, [wanted]).sizes["conv"] == ModuleSizes(4, 6, (3, 3), 2)
    vectors = asked("conv", out_features=6, low_rank=False, vectors=frozenset({Vector.G}))
    assert resolve(base, [vectors]).sizes["conv"] == ModuleSizes(4, 6, (3, 3), 2)
    with pytest.raises(AttachPointError, match="is for 1 groups of channels, the node has 2"):
        resolve(base, [asked("conv", 4, 6, (3, 3))])
    with pytest.raises(AttachPointError, match=r"input \[2, 3, 3\], the node's weight for \[4, 3"):
        resolve(base, [asked("conv", 2, 6, (3, 3), groups=2)])


def test_a_convolution_of_kernel_one_has_the_kernel_of_the_adapter(tmp_path: Path) -> None:
    base = opened(convolution((1, 1), 1).model(), tmp_path)
    for kernel in ((), (1,), (1, 1)):
        assert resolve(base, [asked("conv", 4, 6, kernel)]).sizes["conv"].kernel == kernel
    assert resolve(base, [asked("conv", 4, 6, None)]).sizes["conv"].kernel == (1, 1)


def test_a_kernel_that_files_do_not_tell_is_that_of_the_node(tmp_path: Path) -> None:
    base = opened(convolution((3, 3), 1).model(), tmp_path)
    assert resolve(base, [asked("conv", 4, 6, None)]).sizes["conv"].kernel == (3, 3)
    with pytest.raises(AttachPointError, match=r"input \[5\], the node's weight for \[4, 3, 3\]"):
        resolve(base, [asked("conv", 5, 6, ())])


def attention_module(*, names: str, products: int) -> GraphBuilder:
    """An nn.MultiheadAttention as exporters spell it: out_proj bears its name as well."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    joined = [
        graph.matmul(
            f"/mha/MatMul{f'_{n}' if n else ''}",
            x,
            in_features=4,
            out_features=12 // products,
            weight="mha.in_proj_weight" if names == "weights" else None,
        )
        for n in range(products)
    ]
    y = graph.node("Concat", joined, "/mha/Concat", axis=-1) if products > 1 else joined[0]
    out = graph.weight("mha.out_proj.weight", 4, 12)
    graph.output(graph.node("Gemm", [y, out], "/mha/Gemm", transB=1), ("N", 4))
    if names == "weights":
        for node in graph.nodes:
            node.name = ""
    return graph


@pytest.mark.parametrize("names", ["nodes", "weights"])
def test_q_k_and_v_of_an_attention_module_are_the_module_itself(tmp_path: Path, names: str) -> None:
    base = opened(attention_module(names=names, products=1).model(), tmp_path)
    points = resolve(base, [asked("mha", 4, 12), asked("mha.out_proj", 12, 4)]).points
    assert [(p.name, p.linear.op) for p in points] == [("mha", "MatMul"), ("mha.out_proj", "Gemm")]


def test_an_attention_module_of_several_products(tmp_path: Path) -> None:
    base = opened(attention_module(names="nodes", products=2).model(), tmp_path)
    with pytest.raises(
        AttachPointError,
        match=r"'mha' of adapter 'tone' fits 2 nodes, .*: '/mha/MatMul', '/mha/Mat",
    ) as caught:
        resolve(base, [asked("mha", 4, 12)])
    assert "query, key and value are one tensor" in str(caught.value)


def test_an_attention_module_whose_weight_is_split(tmp_path: Path) -> None:
    # What cross-attention becomes: slices of one weight, and an out_proj named after the module.
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    graph.node("Relu", [graph.weight("mha.in_proj_weight", 4, 4)], "/Split", "slice")
    y = graph.node("MatMul", [x, "slice"], "/mha/MatMul")
    out = graph.weight("mha.out_proj.weight", 4, 4)
    graph.output(graph.node("Gemm", [y, out], "/mha/Gemm", transB=1), ("N", 4))
    base = opened(graph.model(), tmp_path)
    with pytest.raises(
        AttachPointError, match="'/mha/MatMul', which cannot take a branch: its wei"
    ):
        resolve(base, [asked("mha", low_rank=False)])
