"""Branches of embeddings and grouped convolutions in ONNX Runtime, against float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.base.graph_bytes import graph_bytes
from lora_quant.graph.branching.branches import AlphaLayout
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.records import (
    AttachPoint,
    BranchedGraph,
    ConvGeometry,
    Form,
    LinearNode,
    ModulePart,
    Vector,
)
from lora_quant.graph.values.weight_layouts import branch_layouts
from tests.builders import DTYPES, GraphBuilder
from tests.graph.cases import RANK, SLOTS, factors, stored, strengths
from tests.graph.helpers import branch, opened, printed, put, run, undone, with_extras
from tests.graph.numerics import (
    Array,
    Convolution,
    Lookup,
    branch_value,
    count_terms,
    error_bound,
)
from tests.graph.test_branches import check_golden, serialize_of

VOCABULARY, DIM = 9, 6


def embedding(dtype: str = "float32") -> onnx.ModelProto:
    graph = GraphBuilder(dtype)
    ids = graph.input("ids", ("N", "T"), "int64")
    table = graph.weight("embed.weight", VOCABULARY, DIM)
    y = graph.node("Gather", [table, ids], "/embed/Gather", output="y")
    graph.output(y, ("N", "T", DIM))
    return graph.model()


def embedding_point(dtype: str = "float32") -> AttachPoint:
    linear = LinearNode(
        node="/embed/Gather",
        op="Gather",
        form=Form.EMBEDDING,
        x="ids",
        weight="embed.weight",
        product="y",
        in_features=VOCABULARY,
        out_features=DIM,
        dtype=dtype,
        weight_is_in_out=True,
    )
    return AttachPoint("embed", linear, "y", None, (ModulePart("embed", 0, DIM),))


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_a_branched_embedding_reads_like_its_golden(tmp_path: Path, layout: AlphaLayout) -> None:
    base = opened(embedding(), tmp_path)
    branch(base, [with_extras(embedding_point(), "gc")], alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    check_golden(f"embedding_{layout}.txt", printed(base.model.proto.graph))


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("vectors", ["", "g", "c", "gc"])
def test_an_embedding_adds_rows_of_its_branch(
    tmp_path: Path, vectors: str, dtype: str, layout: AlphaLayout
) -> None:
    model = embedding(dtype)
    base = opened(model, tmp_path)
    point = with_extras(embedding_point(dtype), vectors)
    branched = branch(base, [point], max_rank=RANK, alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    assert serialize_of(undone(base.model.proto, branched)) == serialize_of(model)
    (made,) = branched.branches
    A, B = factors(made, 1)
    weights, feeds, s = strengths(branched)
    filled = stored(made, A, B) | weights
    random = np.random.default_rng(6)
    g, c = np.ones(DIM), np.zeros(DIM)
    for one in branched.vectors:
        filled[one.weight.name] = random.uniform(0.5, 2.0, DIM).astype(DTYPES[dtype])
        if one.vector is Vector.G:
            g = filled[one.weight.name].astype(np.float64)
        else:
            c = filled[one.weight.name].astype(np.float64)
    ids = np.array([[0, 8, 3], [3, 3, 5]], np.int64)
    (y,) = run(put(base.model.proto, filled), {"ids": ids} | feeds)
    table = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    rows = np.stack([[table[i] for i in line] for line in ids])
    wanted = g * rows + c + branch_value(Lookup(), ids, A, B, s)
    added = branch_value(Lookup(), ids, np.abs(A), np.abs(B), np.abs(s))
    # A row is copied without any rounding: A counts as one term, though it has many columns.
    bound = error_bound(added, count_terms(A[:, :1], B, len(SLOTS)), dtype)
    # g * row, + c and + l are three more.
    bound += error_bound(g * np.abs(rows) + np.abs(c) + added, 3, dtype)
    assert y.shape == wanted.shape
    assert np.all(np.abs(y - wanted) <= bound)
    assert np.abs(wanted - rows).max() > 20 * bound.max()


def test_an_embedding_computes_the_base_until_it_has_weights(tmp_path: Path) -> None:
    model = embedding()
    base = opened(model, tmp_path)
    branch(base, [with_extras(embedding_point(), "gc")])
    ids = np.arange(VOCABULARY).reshape(3, 3)
    (plain,) = run(model, {"ids": ids})
    (y,) = run(base.model.proto, {"ids": ids, "lora_alpha": np.array([1, 2], np.float32)})
    assert y.tobytes() == plain.tobytes()


def test_an_embedding_has_no_h(tmp_path: Path) -> None:
    base = opened(embedding(), tmp_path)
    before = serialize_of(base.model.proto)
    with pytest.raises(GraphError, match="scales the input of an embedding") as caught:
        branch(base, [with_extras(embedding_point(), "h")])
    assert (caught.value.where.module, caught.value.where.node) == ("embed", "/embed/Gather")
    assert serialize_of(base.model.proto) == before


def test_the_zeros_of_a_table_are_in_the_shared_block(tmp_path: Path) -> None:
    base = opened(embedding(), tmp_path, external=True)
    branched = branch(base, [with_extras(embedding_point(), "gc")])
    names = [weight.record.name for weight in updatable_weights(branched)]
    (tmp_path / "branched.onnx").write_bytes(graph_bytes(base, names, "zeros.data"))
    assert base.zeros.block_size == VOCABULARY * 4 * 4
    (tmp_path / "zeros.data").write_bytes(bytes(base.zeros.block_size))
    check_model_file(tmp_path / "branched.onnx")


def test_a_table_has_its_ranks_on_the_channel_axis(tmp_path: Path) -> None:
    base = opened(embedding(), tmp_path)
    layouts = list(branch_layouts(branch(base, [embedding_point()])))
    assert [(layout.shape, layout.channel_axis) for layout in layouts[:2]] == [
        ((VOCABULARY, 4), 1),
        ((4, DIM), 1),
    ]


GROUPS = 3


def grouped(kernel: tuple[int, ...], dtype: str = "float32") -> onnx.ModelProto:
    graph = GraphBuilder(dtype)
    x = graph.input("x", (2, 6, *(5,) * len(kernel)))
    weights = [graph.weight("conv.weight", 9, 2, *kernel), graph.weight("conv.bias", 9)]
    y = graph.node(
        "Conv",
        [x, *weights],
        "/conv/Conv",
        output="y",
        group=GROUPS,
        strides=[2, 1][: len(kernel)],
        pads=[1] * (2 * len(kernel)),
    )
    graph.output(y, [f"d{n}" for n in range(len(kernel) + 2)])
    return graph.model()


def grouped_point(kernel: tuple[int, ...], dtype: str = "float32") -> AttachPoint:
    geometry = ConvGeometry(kernel, (2, 1)[: len(kernel)], (1,) * (2 * len(kernel)), groups=GROUPS)
    linear = LinearNode(
        node="/conv/Conv",
        op="Conv",
        form=Form.CONV,
        x="x",
        weight="conv.weight",
        product="y",
        in_features=6,
        out_features=9,
        dtype=dtype,
        weight_is_in_out=False,
        conv=geometry,
    )
    return AttachPoint("conv", linear, "y", None, (ModulePart("conv", 0, 9),))


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kernel", [(3,), (3, 2)], ids=str)
@pytest.mark.parametrize("vectors", ["", "ghc"])
def test_a_grouped_convolution_has_a_dense_b_with_blocks(
    tmp_path: Path, vectors: str, kernel: tuple[int, ...], dtype: str, layout: AlphaLayout
) -> None:
    model = grouped(kernel, dtype)
    base = opened(model, tmp_path)
    point = with_extras(grouped_point(kernel, dtype), vectors)
    branched = branch(base, [point], max_rank=RANK, alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    assert serialize_of(undone(base.model.proto, branched)) == serialize_of(model)
    (made,) = branched.branches
    assert made.b_weight.shape == (9, RANK, *(1,) * len(kernel))
    A, dense = factors(made, 1)
    # One slot of rank 3, one rank a group; the other slot of rank 2 is idle.
    start, rank = SLOTS[1][:2]
    B = np.zeros_like(dense)
    B[:, start : start + rank] = np.where(
        np.arange(9)[:, None] // 3 == np.arange(rank), dense[:, start : start + rank], 0
    )
    weights, feeds, s = strengths(branched)
    random = np.random.default_rng(8)
    filled = stored(made, A, B) | weights
    values = {Vector.G: np.ones(9), Vector.H: np.ones(6), Vector.C: np.zeros(9)}
    for one in branched.vectors:
        value = random.uniform(0.5, 2.0, max(one.weight.shape)).astype(DTYPES[dtype])
        values[one.vector] = value
        filled[one.weight.name] = value.reshape(one.weight.shape)
    form = Convolution((2, 1)[: len(kernel)], (1,) * (2 * len(kernel)))
    x = random.normal(size=(2, 6, *(5,) * len(kernel))).astype(DTYPES[dtype])
    (y,) = run(put(base.model.proto, filled), {"x": x} | feeds)
    # The branch by PEFT's definition: group j of B reads rank j of A's results.
    a = form.apply(A[start : start + rank].astype(np.float64), x.astype(np.float64))
    l = np.zeros((2, 9, *a.shape[2:]))  # noqa: E741
    for j in range(GROUPS):
        for row in range(3 * j, 3 * j + 3):
            l[:, row] = float(B[row, start + j]) * s[start + j] * a[:, j]
    W, b = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    scaled = x * form.over_channels(values[Vector.H], x).astype(x.dtype)
    base_value = grouped_value(form, W, scaled.astype(np.float64))
    base_value += form.over_channels(b, base_value)
    g, c = (form.over_channels(values[v].astype(np.float64), l) for v in (Vector.G, Vector.C))
    wanted = g * base_value + c + l
    magnitude = grouped_value(form, np.abs(W), np.abs(scaled).astype(np.float64))
    magnitude = np.abs(g) * (magnitude + form.over_channels(np.abs(b), l))
    added = branch_value(form, np.abs(x), np.abs(A), np.abs(B), np.abs(s))
    bound = error_bound(magnitude, 2 * math.prod(kernel) + 1, dtype)
    bound += error_bound(added, count_terms(A, B, len(SLOTS)), dtype)
    # The product with h is rounded as here; those with g, and the sums with c and l, are three.
    bound += error_bound(magnitude + np.abs(c) + added, 3, dtype)
    assert np.all(np.abs(y - wanted) <= bound)
    assert np.abs(l).max() > 5 * bound.max()


def grouped_value(form: Convolution, W: Array, x: Array) -> Array:
    """W x group by group."""
    rows, columns = len(W) // GROUPS, W.shape[1]
    return np.concatenate(
        [
            form.apply(
                W[j * rows : (j + 1) * rows].astype(np.float64),
                x[:, j * columns : (j + 1) * columns],
            )
            for j in range(GROUPS)
        ],
        axis=1,
    )


def test_all_forms_share_one_strength(tmp_path: Path) -> None:
    graph = GraphBuilder()
    ids = graph.input("ids", ("T",), "int64")
    x = graph.node("Gather", [graph.weight("embed.weight", VOCABULARY, DIM), ids], "/embed/Gather")
    y = graph.matmul("/fc/MatMul", x, in_features=DIM, out_features=4, output="z")
    graph.output(y, ("T", 4))
    model = graph.model()
    base = opened(model, tmp_path)
    branched = shared(base)
    assert branched.scale is not None
    assert branched.scale.scales == ("/lora_alpha/MatMul_output_0",)
    onnx.checker.check_model(base.model.proto, full_check=True)
    assert serialize_of(undone(base.model.proto, branched)) == serialize_of(model)


def shared(base: BaseGraph) -> BranchedGraph:
    """Branches at an embedding and the layer behind it."""
    embed = embedding_point()
    linear = replace(embed.linear, product="/embed/Gather_output_0")
    (fc,) = base.catalog.linears.values()
    points = [
        replace(embed, linear=linear, output=linear.product),
        AttachPoint("fc", fc, "z", None, (ModulePart("fc", 0, 4),)),
    ]
    return branch(base, points)
