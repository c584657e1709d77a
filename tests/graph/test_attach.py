"""From requested modules to attach points: discovery, mappings, and every way to fail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import AttachPointError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.attach.resolver import ModuleRequest, Placement
from lora_quant.graph.records import ModulePart
from tests.builders import GraphBuilder, attention
from tests.graph.helpers import node_of, opened, request, resolve

ATTENTION = "model.layers.0.self_attn"
Q0 = f"{ATTENTION}.q_proj"


@pytest.mark.parametrize("style", ["path", "raw", "weight", "flat"])
def test_every_style_of_names_finds_every_module(tmp_path: Path, style: str) -> None:
    base = opened(attention(style=style).model(), tmp_path)
    requests = [
        request(f"model.layers.{layer}.self_attn.{leaf}", inputs, outputs)
        for layer in (1, 0)
        for leaf, inputs, outputs in (
            ("o_proj", 16, 8),
            ("v_proj", 8, 4),
            ("k_proj", 8, 4),
            ("q_proj", 8, 8),
        )
    ]
    resolution = resolve(base, requests)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj"]
    expected = [f"model.layers.{layer}.self_attn.{leaf}" for layer in (0, 1) for leaf in leaves]
    assert [point.parts[0].module for point in resolution.points] == expected
    assert resolution.placements == {m: Placement(n, 0) for n, m in enumerate(expected)}
    # The mapping that is written leads to the same nodes.
    mapped = resolve(base, requests, attach_map(base.catalog))
    assert mapped == resolution


def test_the_mapping_names_an_unnamed_node_by_its_output(tmp_path: Path) -> None:
    base = opened(attention(layers=1, style="weight").model(), tmp_path)
    assert attach_map(base.catalog)[Q0] == ["layer0_q_proj"]
    assert resolve(base, [request(Q0)]).points[0].linear.node == ""


def test_adapters_may_spell_a_module_in_different_ways(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    other = "layers.0.self_attn.q_proj"
    resolution = resolve(base, [request(Q0), request(other, adapter="legal")])
    (point,) = resolution.points
    assert point.parts == (ModulePart(other, 0, 8),)
    assert resolution.placements == {Q0: Placement(0, 0), other: Placement(0, 0)}


def test_modules_of_one_adapter_do_not_share_a_node(tmp_path: Path) -> None:
    # As when only the decoder was exported, without the level that tells it from the encoder.
    base = opened(attention(layers=1).model(), tmp_path)
    requests = [request(f"{side}.{Q0}") for side in ("encoder", "decoder")]
    with pytest.raises(
        AttachPointError,
        match=f"two modules lead to node '/model/layers.0/self_attn/q_proj/MatMul': 'encoder.{Q0}' "
        f"of adapter 'tone' and 'decoder.{Q0}' of adapter 'tone'",
    ):
        resolve(base, requests)
    two = [request(f"encoder.{Q0}"), request(f"decoder.{Q0}", adapter="legal")]
    with pytest.raises(AttachPointError, match="of adapter 'legal'"):
        resolve(base, two)


def test_a_module_without_a_node_lists_near_names(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(AttachPointError) as caught:
        resolve(base, [request("model.layers.0.self_attn.query")])
    text = str(caught.value)
    assert "'model.layers.0.self_attn.query' of adapter 'tone' has no node in the graph" in text
    assert f"did you mean {Q0!r}" in text
    assert "or name the node in `attach_point_onnx_mapping`" in text
    assert str(base.path) in text


def test_a_module_of_another_layer_is_not_taken(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(AttachPointError, match=r"model\.layers\.1\.self_attn\.q_proj' .* no node"):
        resolve(base, [request("model.layers.1.self_attn.q_proj")])


def called_twice() -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    x = graph.matmul("/fc/MatMul", x, in_features=4, out_features=4, weight="fc.weight")
    x = graph.matmul("/fc/MatMul_1", x, in_features=4, out_features=4, weight="fc.weight")
    graph.output(x, ("N", 4))
    return graph.model()


def test_a_module_with_two_nodes_names_both(tmp_path: Path) -> None:
    base = opened(called_twice(), tmp_path)
    with pytest.raises(
        AttachPointError,
        match="'fc' of adapter 'tone' fits 2 nodes, expected exactly one: '/fc/MatMul', "
        "'/fc/MatMul_1'",
    ):
        resolve(base, [request("fc", 4, 4)])
    with pytest.raises(AttachPointError, match="fits 2 nodes"):
        resolve(base, [request("fc", 4, 4)], attach_map(base.catalog))
    assert node_of(base, request("fc", 4, 4), {"fc": ["/fc/MatMul_1"]}) == "/fc/MatMul_1"


def tied(first: str, second: str) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    for name, output in ((first, "y"), (second, "z")):
        graph.matmul(name, x, in_features=4, out_features=4, weight="first.weight", output=output)
        graph.output(output, ("N", 4))
    return graph.model()


def test_a_shared_weight_does_not_hide_what_nodes_are_called(tmp_path: Path) -> None:
    base = opened(tied("/first/MatMul", "/second/MatMul"), tmp_path)
    assert node_of(base, request("first", 4, 4)) == "/first/MatMul"
    assert node_of(base, request("second", 4, 4)) == "/second/MatMul"


def test_a_shared_weight_alone_is_ambiguous(tmp_path: Path) -> None:
    base = opened(tied("", ""), tmp_path)
    with pytest.raises(AttachPointError, match="fits 2 nodes, expected exactly one: 'y', 'z'"):
        resolve(base, [request("first", 4, 4)])


def test_a_tied_embedding_is_not_the_head(tmp_path: Path) -> None:
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    table = graph.weight("model.embed_tokens.weight", 9, 4)
    x = graph.node("Gather", [table, ids], "/model/embed_tokens/Gather")
    w = graph.node("Transpose", [table], "/lm_head/Transpose", perm=[1, 0])
    graph.output(graph.node("MatMul", [x, w], "/lm_head/MatMul"), ("N", 9))
    base = opened(graph.model(), tmp_path)
    assert node_of(base, request("lm_head", 4, 9)) == "/lm_head/MatMul"
    with pytest.raises(AttachPointError, match=r"embed_tokens' .* is an embedding in the graph"):
        resolve(base, [request("model.embed_tokens", 4, 9)])


def test_nodes_named_after_a_level_above_get_the_names_of_their_weights(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    for number in range(2):
        x = graph.matmul(
            f"/model/MatMul_{number}",
            x,
            in_features=4,
            out_features=4,
            weight=f"model.fc{number}.weight",
        )
    graph.output(x, ("N", 4))
    base = opened(graph.model(), tmp_path)
    resolution = resolve(base, [request("model.fc1", 4, 4), request("model.fc0", 4, 4)])
    assert [p.name for p in resolution.points] == ["model.fc0", "model.fc1"]
    assert list(attach_map(base.catalog)) == ["model.fc0", "model.fc1"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            request(Q0, 9, 8),
            "lora_A is for input [9], the node's weight for [8]",
        ),
        (
            request(Q0, 8, 9),
            "the adapter has 9 output features, the node computes 8",
        ),
        (
            # Not to be taken for a part of a packed projection of 8 = 4 + 2 + 2 rows.
            request(Q0, 8, 4),
            "the adapter has 4 output features, the node computes 8",
        ),
        (
            request(Q0, 8, 8, (3, 3)),
            "lora_A is for input [8, 3, 3], the node's weight for [8]",
        ),
    ],
)
def test_factors_of_another_shape(tmp_path: Path, wanted: ModuleRequest, message: str) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(AttachPointError, match=re.escape(message)) as caught:
        resolve(base, [wanted])
    assert "the adapter was trained on another base model" in str(caught.value)


def test_every_adapter_is_checked(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(AttachPointError, match=r"of adapter 'legal' does not fit .* input \[7\]"):
        resolve(base, [request(Q0), request(Q0, 7, adapter="legal")])
    with pytest.raises(
        AttachPointError,
        match="adapters 'tone' and 'legal' disagree on the output features of one module: 8 and 6",
    ):
        resolve(base, [request(Q0), request(Q0, 8, 6, adapter="legal")])


def convolution(**attributes: Any) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", (1, 4, 6, 6))
    kernel = 1 if not attributes else 3
    group = 4 if "group" in attributes else 1
    w = graph.weight("conv.weight", 4, 4 // group, kernel, kernel)
    graph.output(graph.node("Conv", [x, w], "/conv/Conv", **attributes), ("N", "C", "H", "W"))
    return graph.model()


@pytest.mark.parametrize("kernel", [(), (1,), (1, 1)])
def test_a_kernel_of_one_is_a_linear_layer(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    base = opened(convolution(), tmp_path)
    assert node_of(base, request("conv", 4, 4, kernel)) == "/conv/Conv"


def test_a_dilated_convolution_takes_no_branch(tmp_path: Path) -> None:
    base = opened(convolution(dilations=[2, 2]), tmp_path)
    reason = "it is a dilated convolution (dilations [2, 2])"
    message = re.escape(f"'/conv/Conv', which cannot take a branch: {reason}")
    with pytest.raises(AttachPointError, match=message) as caught:
        resolve(base, [request("conv", 4, 4, (3, 3))])
    assert "take the module out of the adapter" in str(caught.value)
    with pytest.raises(AttachPointError, match=re.escape(f"'/conv/Conv': {reason}")):
        resolve(base, [request("conv", 4, 4, (3, 3))], {"conv": ["/conv/Conv"]})


def quantized() -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w8 = graph.constant(f"{Q0}.weight_quantized", np.ones((4, 4), np.int8))
    graph.output(graph.node("MatMulInteger", [x, w8], "node_linear"), ("N", 4))
    return graph.model()


def test_quantized_weights(tmp_path: Path) -> None:
    base = opened(quantized(), tmp_path)
    with pytest.raises(
        AttachPointError, match=r"cannot take a branch: its weight is quantized \(MatMulInteger"
    ) as caught:
        resolve(base, [request(Q0, 4, 4)])
    assert "give the float graph that was quantized" in str(caught.value)


def nested(function: bool) -> ModelProto:
    """A linear inside a subgraph, or inside a model-local function."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w = graph.weight("fc.weight", 4, 4)
    inner = helper.make_node("MatMul", [x, w], ["inner"], name="/fc/MatMul")
    if function:
        graph.output(graph.node("Layer", [x, w], "/call", domain="local"), ("N", 4))
        model = graph.model(other_domains=["local"])
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(
            helper.make_function("local", "Layer", [x, w], ["inner"], [inner], opsets)
        )
        return model
    flag = graph.input("flag", (), "bool")
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 4])
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 4])
    bodies = {
        "then_branch": helper.make_graph([inner], "then", [], [output]),
        "else_branch": helper.make_graph(
            [helper.make_node("Identity", [x], ["other"])], "else", [], [other]
        ),
    }
    graph.output(graph.node("If", [flag], "/If", **bodies), ("N", 4))
    return graph.model()


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (False, "it lies inside a subgraph (of If, Loop or Scan)"),
        (True, "it lies inside the model-local function 'Layer'"),
    ],
)
def test_nested_nodes(tmp_path: Path, function: bool, place: str) -> None:
    base = opened(nested(function), tmp_path)
    with pytest.raises(
        AttachPointError, match=re.escape(f"'/fc/MatMul', which cannot take a branch: {place}")
    ):
        resolve(base, [request("fc", 4, 4)])
    with pytest.raises(AttachPointError, match=re.escape(f"'/fc/MatMul': {place}")):
        resolve(base, [request("fc", 4, 4)], {"fc": ["/fc/MatMul"]})


def test_a_mapping_overrides_what_names_say(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    node = "/model/layers.0/self_attn/o_proj/MatMul"
    mapping = {"some.module": ["/model/layers.0/Add", "/model/layers.0/self_attn/Concat", node]}
    (point,) = resolve(base, [request("some.module", 16, 8)], mapping).points
    assert (point.linear.node, point.name) == (node, "some.module")
    with pytest.raises(AttachPointError, match="no node in the attach point mapping") as caught:
        resolve(base, [request(Q0)], mapping)
    assert "where: attach_points.json" in str(caught.value)


def test_a_mapping_of_another_graph(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    nodes = [f"/model/layers.0/self_attn/q_proj/MatMul_{n}" for n in range(9)]
    with pytest.raises(AttachPointError) as caught:
        resolve(base, [request(Q0)], {Q0: nodes})
    text = str(caught.value)
    assert "the graph has no MatMul, Gemm, Conv or MatMulNBits of such a name: '/" in text
    assert "MatMul_2' and 6 more" in text
    assert "was the mapping made for another export? did you mean '/model/layers.0" in text
    with pytest.raises(AttachPointError, match="of such a name: its list is empty"):
        resolve(base, [request(Q0)], {Q0: []})


def test_a_mapping_may_lead_parts_to_one_node(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 8))
    graph.output(graph.matmul("/fused/MatMul", x, in_features=8, out_features=16), ("N", 16))
    base = opened(graph.model(), tmp_path)
    leaves = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
    mapping = {f"{ATTENTION}.{leaf}": ["/fused/MatMul"] for leaf in leaves}
    resolution = resolve(base, [request(f"{ATTENTION}.k_proj", 8, 4)], mapping)
    (point,) = resolution.points
    assert point.name == f"{ATTENTION}.qkv_proj"
    assert point.parts == (ModulePart(f"{ATTENTION}.k_proj", 8, 4),)
