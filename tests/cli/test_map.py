"""What `lora-quant map` says of graphs that it cannot map, in part or at all, and of its output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_quant.cli.main import run
from tests.graph.twins import quantized, scrambled
from tests.sample import ROOT, SAMPLE

GRAPH = str(SAMPLE / "model" / "model.onnx")
QUANTIZED = str(ROOT / "tests" / "fixtures" / "exports" / "genai_int4" / "model.onnx")


def test_existing_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "map.json"
    path.write_text("mine")
    assert run(["map", GRAPH, "-o", str(path)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error LQ500: the output file exists\n")
    assert "hint:  add --force to replace it" in error
    assert path.read_text() == "mine"
    assert run(["map", GRAPH, "-o", str(path), "--force"]) == 0
    assert len(json.loads(path.read_text())) == 16  # 15 linear layers, one embedding
    assert capfd.readouterr().err == f"16 modules -> {path}\n"


def test_missing_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["map", GRAPH, "-o", str(tmp_path / "absent" / "map.json")]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error LQ500: the folder of the output file does not exist\n")
    assert "hint:  make the folder" in error


def test_file_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Root may write anywhere, so the refusal is made here.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "map.json"
    assert run(["map", GRAPH, "-o", str(path)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error LQ500: cannot write: Permission denied\n")
    assert f"where: {path}\n" in error


def test_quantized_graph(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["map", QUANTIZED]) == 0
    out, error = capfd.readouterr()
    assert error == ""
    found = json.loads(out)
    assert len(found) == 12  # 5 nodes in each of 2 layers, the output layer, the embedding
    assert found["lm_head"] == ["/lm_head/MatMul_Q4"]
    name = "model.layers.1.attn.qkv_proj"
    assert found[name] == ["/model/layers.1/attn/qkv_proj/MatMul_Q4"]


EXPORTS = ROOT / "tests" / "fixtures" / "exports"
FLOAT = EXPORTS / "torchscript" / "model.onnx"


def nameless(path: Path, *, with_int4: bool = True) -> str:
    """The float export with weights of 4 bits, and without any name that tells a module."""
    model = onnx.load(str(FLOAT))
    changed = quantized(model, "nbits") if with_int4 else model
    onnx.save(scrambled(changed, 3)[0], str(path))
    return str(path)


def test_the_float_graph_tells_the_modules(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = nameless(tmp_path / "model.onnx")
    assert run(["map", graph]) == 1
    error = capfd.readouterr().err
    assert "no linear node tells its module" in error
    assert "name the float graph that it was quantized from with --map-from" in error
    path = tmp_path / "map.json"
    assert run(["map", graph, "--map-from", str(FLOAT), "-o", str(path)]) == 0
    assert capfd.readouterr().err == f"16 modules -> {path}\n"
    assert run(["map", str(FLOAT)]) == 0
    assert list(json.loads(path.read_text())) == list(json.loads(capfd.readouterr().out))


def test_modules_that_the_graph_has_no_node_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = nameless(tmp_path / "model.onnx")
    model = onnx.load(graph)
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    node.CopyFrom(helper.make_node("MatMulBnb4", node.input, node.output, domain="com.microsoft"))
    onnx.save(model, graph)
    assert run(["map", graph, "--map-from", str(FLOAT)]) == 0
    out, error = capfd.readouterr()
    assert len(json.loads(out)) == 15
    assert (
        "note: left out are modules of the float graph that have no linear node here: 'model."
        in error
    )


def test_modules_that_only_their_order_tells(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for number, names in enumerate((("/a/MatMul", "/b/MatMul"), ("m", "n"))):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [f"{number}{name}"], name=name) for name in names
        ]
        nodes.append(helper.make_node("Add", [node.output[0] for node in nodes], ["y"], name="s"))
        paths.append(save(tmp_path / f"{number}.onnx", nodes, weight("w", np.float32)))
    assert run(["map", paths[1], "--map-from", paths[0]]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out) == {"a": ["m"], "b": ["n"]}
    assert error.startswith("note: 2 nodes are alike in all but their order, which was taken: ")
    assert "check 'a', 'b'" in error


def test_a_float_graph_that_is_not_there_or_no_float_graph(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["map", GRAPH, "--map-from", str(tmp_path / "absent.onnx")]) == 1
    assert "the float graph does not exist" in capfd.readouterr().err
    assert run(["map", GRAPH, "--map-from", QUANTIZED]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error LQ300: this is no float graph")
    assert "give the graph that was quantized, as it was before" in error
    assert run(["map", GRAPH, "--map-from", str(FLOAT)]) == 1
    assert "the float graph" in capfd.readouterr().err


def save(path: Path, nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> str:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return str(path)


def weight(name: str, kind: type[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones((4, 4), kind), name)


def test_mixed_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Products of two activations are left out: nobody looks for an attach point there."""
    nodes = [
        helper.make_node("MatMul", ["x", "float"], ["a"], name="/model/up/MatMul"),
        helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"], name="/model/down/Q"),
        helper.make_node("MatMulInteger", ["q", "int", "z"], ["i"], name="/model/down/MatMul"),
        helper.make_node("Cast", ["i"], ["b"], name="/model/down/Cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["b"], ["t"], name="/model/attn/Transpose"),
        helper.make_node("MatMul", ["t", "b"], ["y"], name="/model/attn/MatMul"),
    ]
    weights = (weight("float", np.float32), weight("int", np.int8))
    graph = save(tmp_path / "model.onnx", nodes, *weights)
    assert run(["map", graph]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out) == {"model.up": ["/model/up/MatMul"]}
    assert error == (
        "note: 1 linear node cannot take a branch: its weight is quantized (MatMulInteger)\n"
    )


def test_graphs_without_a_module(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="n")
    graph = save(tmp_path / "unnamed.onnx", [product], weight("w", np.float32))
    assert run(["map", graph]) == 1
    assert "no linear node tells its module" in capfd.readouterr().err
    refused = helper.make_node("ConvTranspose", ["x", "w"], ["z"], name="/model/up/ConvTranspose")
    graph = save(tmp_path / "both.onnx", [product, refused], weight("w", np.float32))
    assert run(["map", graph]) == 1
    error = capfd.readouterr().err
    assert "no linear node tells its module" in error
    assert "; 1 linear node cannot take a branch: a transposed convolution" in error
    graph = save(tmp_path / "none.onnx", [helper.make_node("Relu", ["x"], ["y"], name="n")])
    assert run(["map", graph]) == 1
    assert "the graph has no linear node\n" in capfd.readouterr().err
