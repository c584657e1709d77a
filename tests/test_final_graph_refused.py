"""Graphs of use cases, and configurations, that a graph which is final does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file

from lora_quant.config.options import BuildOptions
from lora_quant.errors import (
    ConfigError,
    GraphError,
    LoraQuantError,
    VerificationError,
)
from lora_quant.runtime.verify.verify import verify
from tests.final_graphs import (
    RANK,
    WEIGHTS,
    adapter,
    final,
    initializers,
    lora_config,
    use_case,
)


def _edit_weight(model: ModelProto, name: str, value: float) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def _other_weight(model: ModelProto) -> None:
    _edit_weight(model, "fc.weight", 0.75)


def _other_operator(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.op_type == "Relu"]
    node.op_type = "Tanh"


def _other_wires(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.name == "/Mul"]
    node.input[0] = "/q/lora_add/Add_output_0"


def _other_attribute(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.op_type == "Relu"]
    node.attribute.append(onnx.helper.make_attribute("alpha", 2.0))


def _more_nodes(model: ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"], "/extra"))


def _other_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def _other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 18


def _other_rank(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "q.lora_A.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((32, 4), np.float32), tensor.name))


def _more_weights(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_other_weight, r"got 0\.75 as element 5 of an initializer that belongs to no branch"),
        (_other_operator, r"got Tanh, expected Relu \(/Relu\)"),
        (_other_wires, r"got a Mul from .*, expected a Mul from \['/Sigmoid_output_0'"),
        (_other_attribute, r"got another 'alpha' of a Relu"),
        (_more_nodes, r"got 17 nodes, expected 16"),
        (_other_input, r"got the input 'x' \(float of shape \[1, 7, 32\]\), expected 'x' \(float"),
        (_other_opset, r"got operator sets \{'ai\.onnx': 18\}, expected \{'ai\.onnx': 17\}"),
        (_other_rank, r"got float of shape \[32, 4\], expected float of shape \[32, 8\]"),
        (_more_weights, r"got an initializer that the given graph lacks, expected none"),
    ],
)
def test_a_use_cases_graph_that_differs_is_refused_with_the_difference(
    tmp_path: Path, edit: Callable[[ModelProto], None], told: str
) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match=told) as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.file == path
    assert caught.value.where.use_case == "b"
    assert not (tmp_path / "out").exists()


def test_names_of_nodes_and_notes_do_not_matter(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    model.producer_name = "another"
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
        node.doc_string = "renamed"
    onnx.save(model, str(path))
    final(config, tmp_path / "out")
    stored = initializers(path)
    got = load_file(tmp_path / "out" / "qairt" / "b" / "lora_weights.safetensors")
    assert all(np.array_equal(values, stored[name]) for name, values in got.items())
    assert sorted(got) == WEIGHTS


def test_equal_values_in_another_field_are_equal(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.ravel().tolist())
    onnx.save(model, str(path))
    final(config, tmp_path / "out")
    got = load_file(tmp_path / "out" / "qairt" / "b" / "lora_weights.safetensors")
    own = initializers(path)
    for tensor in WEIGHTS:
        np.testing.assert_array_equal(got[tensor], own[tensor], strict=True)


def test_a_description_on_the_graph_of_the_base_is_refused(tmp_path: Path) -> None:
    cases = [use_case("base", [], "base_lora_zero"), use_case("a", ["a"], "base_lora_zero")]
    config = lora_config(tmp_path, {"use-case": cases})
    with pytest.raises(ConfigError, match="nothing tells the weights of adapter 'a'") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.use_case == "a"
    assert caught.value.hint is not None
    assert "model_name" in caught.value.hint


def test_adapters_of_more_ranks_than_the_branches_are_refused(tmp_path: Path) -> None:
    edits = {"adapter": [adapter("a", RANK + 1), adapter("b")]}
    with pytest.raises(ConfigError, match="have 9 ranks, and the branches of the given graph 8"):
        final(lora_config(tmp_path, edits, encodings=None), tmp_path / "out")


def test_a_graph_without_branches_is_refused(tmp_path: Path) -> None:
    config = lora_config(tmp_path, {"use-case": [use_case("a", ["a"], "base_plain")]})
    with pytest.raises(GraphError, match="no LoRA branch was found in it"):
        final(config, tmp_path / "out")


def test_weights_that_are_not_initializers_are_refused(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "base_lora_zero.fp32.onnx"
    model = onnx.load(str(path))
    (tensor,) = [t for t in model.graph.initializer if t.name == "v.lora_B.weight"]
    value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    model.graph.input.append(value)
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match=r"cannot be switched: .*graph input") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.tensor == "v.lora_B.weight"


def test_weights_that_two_branches_share_are_refused(tmp_path: Path) -> None:
    """An optimizer that merges equal initializers makes one of all zeros."""
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "base_lora_zero.fp32.onnx"
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.input[:] = [name.replace("v.lora_A", "q.lora_A") for name in node.input]
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match="cannot be switched: more than one node reads it"):
        final(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"targets": ("qairt", "onnxruntime")}, "the target 'onnxruntime' is given without"),
        ({"merge": "a"}, "merge is given without create_lora_graph"),
        ({"alpha_layout": "rank"}, "alpha_layout is given without create_lora_graph"),
    ],
)
def test_options_that_would_change_the_graph_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BuildOptions(create_lora_graph=False, **options)


def test_a_use_cases_graph_that_changed_is_not_verified(tmp_path: Path) -> None:
    final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    path = tmp_path / "lora_adapter_a.fp32.onnx"
    model = onnx.load(str(path))
    _edit_weight(model, "q.lora_A.weight", 9.0)
    onnx.save(model, str(path))
    with pytest.raises(VerificationError, match="graph of use case 'a' is not the one"):
        verify(tmp_path / "out")


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    (tmp_path / "lora_adapter_b.fp32.onnx").unlink()
    with pytest.raises(LoraQuantError, match="does not exist") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.file == tmp_path / "lora_adapter_b.fp32.onnx"
