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
