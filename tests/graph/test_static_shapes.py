"""Symbolic axes get their sizes, and what is left open is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lora_quant.errors import ConfigError, GraphError, Where
from lora_quant.graph.device.static_shapes import fix_axes, is_static, parse_dims
from tests.builders import Shape

WHERE = Where(file=Path("base.onnx"))


def model(x: Shape, weight: tuple[int, int] | None = None) -> ModelProto:
    """x -> Relu -> (MatMul ->) y; the type of what is in between is told with the axes of x."""
    nodes = [helper.make_node("Relu", ["x"], ["inner"], name="relu")]
    stored = []
    if weight is None:
        nodes.append(helper.make_node("Identity", ["inner"], ["y"], name="out"))
    else:
        stored.append(numpy_helper.from_array(np.ones(weight, np.float32), "weight"))
        nodes.append(helper.make_node("MatMul", ["inner", "weight"], ["y"], name="out"))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x) for n in ("x", "inner")]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"{x[0]} out", None])
    graph = helper.make_graph(nodes, "g", values[:1], [y], stored, value_info=values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def sizes(proto: ModelProto, name: str) -> list[int]:
    graph = proto.graph
    values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    assert is_static(values[name])
    return [dim.dim_value for dim in values[name].type.tensor_type.shape.dim]


def test_inputs_outputs_and_what_is_in_between_get_the_sizes() -> None:
    proto = model(["batch", "seq len"])
    fix_axes(proto, {"batch": 2, "seq len": 5}, WHERE)
    assert sizes(proto, "x") == sizes(proto, "inner") == sizes(proto, "y") == [2, 5]


def test_the_last_equals_sign_separates_name_and_size() -> None:
    found = parse_dims(["batch=1", "past_sequence_length + 1=17", "a=b=3"])
    assert found == {"batch": 1, "past_sequence_length + 1": 17, "a=b": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "'batch', expected NAME=SIZE"),
        ("=4", "'=4', expected NAME=SIZE"),
        ("batch=four", "'batch=four', expected NAME=SIZE"),
        ("batch=-1", "'batch=-1', expected NAME=SIZE"),
        ("batch=0", "given the size 0, expected 1 to"),
        ("batch=99999999999", "given the size 99999999999, expected 1 to"),
    ],
)
def test_a_size_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="axis") as caught:
        parse_dims([text])
    assert message in caught.value.message
    assert caught.value.where.field == "dims"


def test_two_sizes_for_one_axis_are_refused() -> None:
    with pytest.raises(ConfigError, match="two sizes: 1 and 2"):
        parse_dims(["batch=1", "batch=2"])
    assert parse_dims(["batch=1", "batch=1"]) == {"batch": 1}


def test_a_name_that_the_graph_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(ConfigError, match="no axis 'batsh'") as caught:
        fix_axes(model(["batch", 4]), {"batsh": 1}, WHERE)
    assert caught.value.hint == "did you mean 'batch' or 'batch out'?"


def test_a_graph_of_fixed_sizes_has_no_use_for_one() -> None:
    fixed = model([1, 4])
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ConfigError, match="no axis 'batch'") as caught:
        fix_axes(fixed, {"batch": 1}, WHERE)
    assert caught.value.hint == "its shapes are fixed already: leave out --dim"


def test_axes_that_stay_open_are_named_with_their_places() -> None:
    with pytest.raises(ConfigError) as caught:
        fix_axes(model(["batch", "seq len"]), {"batch": 1}, WHERE)
    assert "'seq len' (axis 1 of input 'x')" in caught.value.message
    assert caught.value.hint == "give them with --dim 'seq len'=SIZE"


def test_an_open_axis_without_a_name_is_refused() -> None:
    with pytest.raises(GraphError, match="neither a size nor a name: axis 1 of input 'x'"):
        fix_axes(model([1, None]), {}, WHERE)  # type: ignore[list-item]


def test_sizes_that_contradict_the_graph_are_refused() -> None:
    with pytest.raises(GraphError, match="does not work with these sizes") as caught:
        fix_axes(model(["batch", "features"], (4, 4)), {"batch": 2, "features": 5}, WHERE)
    assert caught.value.where.file == WHERE.file
