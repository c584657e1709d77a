"""Module paths from what exporters leave in a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto

from lora_quant.graph.attach.module_names import path_of_node_name
from tests.builders import GraphBuilder
from tests.graph.helpers import opened

SCOPES = "pkg.torch.onnx.name_scopes"
FOLDED = "pkg.onnxscript.optimizer.folded_from"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/layer2/layer2.0/downsample/downsample.0/Conv", "layer2.0.downsample.0"),
        ("/model/layers.0/self_attn/q_proj/MatMul", "model.layers.0.self_attn.q_proj"),
        ("/layer2/layer2.0/conv1/Conv", "layer2.0.conv1"),
        ("/lm_head/MatMul", "lm_head"),
        ("/lm_head/MatMul_Q4", "lm_head"),
        ("/lm_head/MatMul_matmul_Q4", "lm_head"),
        ("/lm_head/MatMul/MatMulAddFusion", "lm_head"),
        ("/lm_head/MatMul/MatMulAddFusion_token_4", "lm_head"),
        ("/MatMulAddFusion/MatMul", "MatMulAddFusion"),
        ("/MatMul", None),
        ("//MatMul", None),
        ("MatMul_12", None),
        ("", None),
        ("/", None),
    ],
)
def test_the_path_in_a_node_name(name: str, path: str | None) -> None:
    assert path_of_node_name(name) == path


def one_linear(node: str, weight: str) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", (1, 2))
    graph.matmul(node, x, in_features=2, out_features=3, weight=weight, output="y")
    graph.output("y", (1, 3))
    return graph.model(ir_version=10)


def paths(model: ModelProto, folder: Path) -> tuple[str, ...]:
    return opened(model, folder).catalog.paths["y"]


@pytest.mark.parametrize(
    ("node", "weight", "expected"),
    [
        ("/a/fc/MatMul", "onnx::MatMul_3", ("a.fc",)),
        ("", "a.fc.weight", ("a.fc",)),
        ("MatMul_3", "a.fc.weight", ("a.fc",)),
        ("", "a.attn.qkv_proj.MatMul.weight", ("a.attn.qkv_proj",)),
        ("", "a.fc.weight_transposed", ("a.fc",)),
        ("", "a.fc.weight_fp16", ("a.fc",)),
        ("", "a.mha.in_proj_weight", ("a.mha",)),
        ("a_0_fc_MatMul", "onnx::MatMul_3", ("a_0_fc",)),
        ("/model/MatMul_3", "model.a.fc.weight", ("model", "model.a.fc")),
        ("/a_0_fc_Conv/MatMul", "w", ("a_0_fc_Conv",)),
        ("a_0_fc_MatMul_Q4", "onnx::MatMul_3_Q4", ("a_0_fc",)),
        ("a_0_fc_MatMul_matmul_Q8G32", "onnx::MatMul_3_DQ_Q8G32", ("a_0_fc",)),
        ("a_0_conv_q", "w", ()),
        ("", "a.fc.weight_DQ_Q4", ("a.fc",)),
        ("", "a.fc.weight_quantized", ("a.fc",)),
        ("", "a.fc.weight_q", ("a.fc",)),
        ("MatMul_3", "val_12", ()),
        ("", ".weight", ()),
    ],
)
def test_paths_from_names(
    tmp_path: Path, node: str, weight: str, expected: tuple[str, ...]
) -> None:
    assert paths(one_linear(node, weight), tmp_path) == expected


def test_paths_from_metadata_of_nodes(tmp_path: Path) -> None:
    model = one_linear("node_linear", "val_12")
    model.graph.node[0].metadata_props.add(
        key=SCOPES, value="['', 'model', 'model.layers.0', 'model.layers.0.fc', 'linear']"
    )
    assert paths(model, tmp_path) == ("model.layers.0.fc",)


@pytest.mark.parametrize("source", ["model.fc.weight", "model.fc.in_proj_weight"])
def test_paths_from_metadata_of_values(tmp_path: Path, source: str) -> None:
    model = one_linear("node_linear", "val_12")
    value = model.graph.value_info.add(name="val_12")
    value.metadata_props.add(key=FOLDED, value=f"['val_3', '{source}']")
    assert paths(model, tmp_path) == ("model.fc",)


@pytest.mark.parametrize("codes", ["val_12_Q4", "val_12_DQ_Q4", "val_12_quantized", "val_12_q"])
def test_metadata_that_stays_behind_when_a_weight_is_quantized(tmp_path: Path, codes: str) -> None:
    model = one_linear("node_linear_Q4", codes)
    value = model.graph.value_info.add(name="val_12")
    value.metadata_props.add(key=FOLDED, value="['model.fc.weight']")
    assert paths(model, tmp_path) == ("model.fc",)


def test_metadata_of_a_weight_that_is_still_there_is_not_of_another(tmp_path: Path) -> None:
    model = one_linear("node_linear", "val_q")
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    model.graph.initializer[1].name = "val"
    value = model.graph.value_info.add(name="val")
    value.metadata_props.add(key=FOLDED, value="['model.fc.weight']")
    assert paths(model, tmp_path) == ()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("/a/fc/MatMul_output_0", ("a.fc",)),
        ("/a/fc/MatMul/output_0", ("a.fc",)),
        ("/a/fc/MatMul_3_output_0", ("a.fc",)),
        ("/a/fc/MatMul_output_0_Q4", ("a.fc",)),
        ("/a/fc/MatMul_output_0_QuantizeLinear_Input", ("a.fc",)),
        ("/a/fc/Add_output_0", ()),
        ("/a/fc/MatMul", ()),
        ("linear_3", ()),
    ],
)
def test_the_output_of_a_node_without_a_name_tells_its_module(
    tmp_path: Path, output: str, expected: tuple[str, ...]
) -> None:
    model = one_linear("", "val_12")
    model.graph.node[0].output[0] = model.graph.output[0].name = output
    assert opened(model, tmp_path).catalog.paths[output] == expected
    model.graph.node[0].name = "/b/fc/MatMul"
    assert opened(model, tmp_path).catalog.paths[output] == ("b.fc",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not a list",
        "['only']",
        "['', '']",
        "{'a': 1}",
        "[1, 2, 3]",
        "__import__('os').abort()",
        "[" * 5000,
        "['x', " * 30000,
        "['\\",
    ],
)
def test_metadata_of_another_form_tells_nothing(tmp_path: Path, text: str) -> None:
    model = one_linear("node_linear", "val_12")
    model.graph.node[0].metadata_props.add(key=SCOPES, value=text)
    value = model.graph.value_info.add(name="val_12")
    value.metadata_props.add(key=FOLDED, value=text)
    assert paths(model, tmp_path) == ()
