"""Tables that rows are looked up in, as attach points of their own kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import AttachPointError, GraphError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.records import AttachPoint, Form, Vector
from tests.builders import GraphBuilder
from tests.graph.helpers import opened, resolve
from tests.graph.requests import asked

TABLE = "model.embed_tokens.weight"
MODULE = "model.embed_tokens"


def embed(
    *, op: str = "Gather", name: str = "/model/embed_tokens/Gather", axis: int = 0
) -> GraphBuilder:
    graph = GraphBuilder()
    ids = graph.input("ids", ("batch", "tokens"), "int64")
    graph.node(op, [graph.weight(TABLE, 9, 4), ids], name, "rows", axis=axis)
    return graph


def finished(graph: GraphBuilder, tensor: str = "rows") -> ModelProto:
    graph.output(tensor, ("batch", "tokens", 4))
    return graph.model(other_domains=["com.microsoft"])


def point_of(model: ModelProto, folder: Path, module: str = MODULE) -> AttachPoint:
    base = opened(model, folder)
    (point,) = resolve(base, [asked(module, 9, 4, is_embedding=True)]).points
    return point


@pytest.mark.parametrize(
    "name", ["/model/embed_tokens/Gather", "", "Gather_3", "model_embed_tokens_Gather"]
)
def test_a_gather_of_rows_is_an_embedding(tmp_path: Path, name: str) -> None:
    point = point_of(finished(embed(name=name)), tmp_path)
    linear = point.linear
    assert (linear.op, linear.form, linear.x) == ("Gather", Form.EMBEDDING, "ids")
    assert (linear.in_features, linear.out_features, linear.weight) == (9, 4, TABLE)
    assert linear.weight_is_in_out
    assert (point.output, point.bias_node, point.parts[0].size) == ("rows", None, 4)


def test_sizes_are_those_of_the_table(tmp_path: Path) -> None:
    base = opened(finished(embed()), tmp_path)
    sizes = resolve(base, [asked(MODULE, is_embedding=True)]).sizes[MODULE]
    assert (sizes.in_features, sizes.out_features, sizes.is_embedding) == (9, 4, True)
    with pytest.raises(AttachPointError, match=r"is for input \[8\], the node's weight for \[9\]"):
        resolve(base, [asked(MODULE, 8, 4, is_embedding=True)])
    with pytest.raises(AttachPointError, match="has 5 output features, the node computes 4"):
        resolve(base, [asked(MODULE, 9, 5, is_embedding=True)])


def test_what_follows_an_embedding_is_not_part_of_it(tmp_path: Path) -> None:
    # Gemma multiplies the rows, of the base and of the adapter alike, by a constant.
    scaled = embed()
    scaled.node("Mul", ["rows", scaled.weight("embed_scale")], "/model/embed_tokens/Mul", "x")
    assert point_of(finished(scaled, "x"), tmp_path).output == "rows"
    added = embed()
    added.node("Add", ["rows", added.weight("b", 4)], "/model/embed_tokens/Add", "x")
    assert point_of(finished(added, "x"), tmp_path).output == "rows"


def tied(transpose_in_head: bool) -> ModelProto:
    graph = GraphBuilder()
    ids = graph.input("ids", ("batch", "tokens"), "int64")
    shared = graph.weight(TABLE, *((9, 4) if transpose_in_head else (4, 9)))
    flipped = graph.node("Transpose", [shared], "/lm_head/Transpose", perm=[1, 0])
    table, head = (shared, flipped) if transpose_in_head else (flipped, shared)
    rows = graph.node("Gather", [table, ids], "/model/embed_tokens/Gather")
    graph.output(graph.node("MatMul", [rows, head], "/lm_head/MatMul"), ("batch", "tokens", 9))
    return graph.model()


@pytest.mark.parametrize("transpose_in_head", [True, False])
def test_a_table_that_is_also_the_output_layer(tmp_path: Path, transpose_in_head: bool) -> None:
    base = opened(tied(transpose_in_head), tmp_path)
    requests = [asked("lm_head", 4, 9), asked(MODULE, 9, 4, is_embedding=True)]
    resolution = resolve(base, requests)
    assert [p.linear.op for p in resolution.points] == ["Gather", "MatMul"]
    assert [p.name for p in resolution.points] == [MODULE, "lm_head"]
    assert resolution.points[0].linear.weight_is_in_out == transpose_in_head


@pytest.mark.parametrize("is_embedding", [True, False])
def test_a_module_of_the_other_kind(tmp_path: Path, is_embedding: bool) -> None:
    base = opened(tied(True), tmp_path)
    linear, other = "a linear layer or a convolution", "an embedding"
    module = "lm_head" if is_embedding else MODULE
    got, expected = (linear, other) if is_embedding else (other, linear)
    with pytest.raises(AttachPointError, match=f"is {got} in the graph, expected {expected}"):
        resolve(base, [asked(module, is_embedding=is_embedding)])


def test_an_unknown_embedding_lists_near_names(tmp_path: Path) -> None:
    base = opened(finished(embed()), tmp_path)
    with pytest.raises(AttachPointError, match=r"embed' .* has no node in the graph") as caught:
        resolve(base, [asked("model.embed", is_embedding=True)])
    assert f"did you mean {MODULE!r}" in str(caught.value)


def test_embeddings_have_a_mapping_of_their_own(tmp_path: Path) -> None:
    base = opened(tied(True), tmp_path)
    assert attach_map(base.catalog) == {"lm_head": ["/lm_head/MatMul"]}
    mapping = attach_map(base.catalog.embeddings)
    assert mapping == {MODULE: ["/model/embed_tokens/Gather"]}
    request = asked(MODULE, 9, 4, is_embedding=True)
    assert resolve(base, [request], mapping) == resolve(base, [request])
    with pytest.raises(AttachPointError, match="the graph has no Gather of such a name: '/lm_head"):
        resolve(base, [request], {MODULE: ["/lm_head/MatMul"]})


def test_inputs_of_an_embedding_cannot_be_scaled(tmp_path: Path) -> None:
    base = opened(finished(embed()), tmp_path)
    request = asked(MODULE, is_embedding=True, low_rank=False, vectors=frozenset({Vector.H}))
    with pytest.raises(AttachPointError, match="scales its inputs, but an embedding reads indices"):
        resolve(base, [request])


def quantized(op: str) -> GraphBuilder:
    graph = GraphBuilder()
    ids = graph.input("ids", ("batch", "tokens"), "int64")
    stored = graph.constant(f"{MODULE}.weight_quantized", np.zeros((9, 4), np.int8))
    scale = graph.constant("scale", np.array(1.0, np.float32))
    name = "/model/embed_tokens/Gather"
    if op == "GatherBlockQuantized":
        graph.node(op, [stored, ids, scale], name, "rows", domain="com.microsoft")
    elif op == "before":
        table = graph.node("DequantizeLinear", [stored, scale], "/dq")
        graph.node("Gather", [table, ids], name, "rows")
    else:
        rows = graph.node("Gather", [stored, ids], name)
        graph.node("DequantizeLinear", [rows, scale], "/dq", "rows")
    return graph


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        ("GatherBlockQuantized", "its weight is quantized (GatherBlockQuantized)"),
        ("before", "its weight is quantized (DequantizeLinear)"),
        ("after", "its weight is of type int8, expected float32, float16 or bfloat16"),
    ],
)
def test_quantized_tables(tmp_path: Path, op: str, reason: str) -> None:
    base = opened(finished(quantized(op)), tmp_path)
    with pytest.raises(AttachPointError) as caught:
        resolve(base, [asked(MODULE, 9, 4, is_embedding=True)])
    assert f"cannot take a branch: {reason}" in str(caught.value)


def test_a_table_inside_a_subgraph(tmp_path: Path) -> None:
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    flag = graph.input("flag", (), "bool")
    graph.weight(TABLE, 9, 4)
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", 4])
    inner = helper.make_node("Gather", [TABLE, ids], ["rows"], name="/model/embed_tokens/Gather")
    body = helper.make_graph([inner], "body", [], [rows])
    graph.output(graph.node("If", [flag], "/If", then_branch=body, else_branch=body), ("N", 4))
    base = opened(graph.model(), tmp_path)
    with pytest.raises(AttachPointError, match=r"it lies inside a subgraph \(of If"):
        resolve(base, [asked(MODULE, is_embedding=True)])


def test_what_else_a_gather_does_is_not_looked_at(tmp_path: Path) -> None:
    graph = embed(axis=1)
    graph.node("Gather", [graph.weight("line", 9), "ids"], "/line/Gather")
    graph.node("Gather", [graph.constant("shape", np.ones((2, 2), np.int64)), "ids"], "/s/Gather")
    graph.node("Gather", ["rows", "ids"], "/of_rows/Gather")
    graph.node("Gather", [TABLE, "ids"], "/foreign/Gather", domain="com.microsoft")
    computed = graph.node("Relu", [TABLE], "/Relu")
    graph.node("Gather", [computed, "ids"], "/computed/Gather")
    catalog = opened(finished(graph), tmp_path).catalog.embeddings
    assert not catalog.nodes
    assert not catalog.refused


def test_a_gather_without_indices_is_refused(tmp_path: Path) -> None:
    graph = embed()
    model = finished(graph)
    model.graph.node.add(op_type="Gather", name="/broken/Gather", input=[TABLE], output=["z"])
    with pytest.raises(GraphError, match=r"a Gather node has inputs .* expected at least 2"):
        opened(model, tmp_path)


def test_an_axis_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model = finished(embed())
    model.graph.node[0].attribute[0].type = 0
    with pytest.raises(GraphError, match="attribute 'axis' of a Gather node has no type"):
        opened(model, tmp_path)


def test_two_lookups_of_one_name(tmp_path: Path) -> None:
    graph = embed()
    graph.node("Gather", [TABLE, "ids"], "/model/embed_tokens/Gather", "again")
    found = opened(finished(graph), tmp_path).catalog.embeddings.nodes
    assert isinstance(found["/model/embed_tokens/Gather"], NotLinear)
