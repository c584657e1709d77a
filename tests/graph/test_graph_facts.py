"""Names, roles, types, shapes and weight axes of a graph, without its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.files.graph_facts import GraphFacts, TensorFact, TensorRole, read_graph_facts
from tests.builders import GraphBuilder
from tests.graph.test_large_graphs import make_large
from tests.timing import cpu_seconds


def facts_of(graph: GraphBuilder, tmp_path: Path) -> GraphFacts:
    return read_graph_facts(graph.save(tmp_path / "model.onnx"))


def chain(tmp_path: Path) -> GraphFacts:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    h = graph.matmul("/q_proj/MatMul", x, in_features=4, out_features=6)
    y = graph.node("Relu", [h], "/act/Relu")
    graph.output(y, ("N", 6))
    return facts_of(graph, tmp_path)


def test_each_tensor_has_its_role_type_and_shape(tmp_path: Path) -> None:
    facts = chain(tmp_path)
    assert facts.nodes == {"/q_proj/MatMul": "MatMul", "/act/Relu": "Relu"}
    roles = {name: fact.role for name, fact in facts.tensors.items()}
    assert list(roles.values()).count(TensorRole.INITIALIZER) == 1
    assert facts.tensors["x"] == TensorFact(TensorRole.INPUT, "float", (-1, 4))
    output = next(name for name, role in roles.items() if role is TensorRole.OUTPUT)
    assert facts.tensors[output].shape == (-1, 6)


def test_what_the_graph_does_not_tell_of_an_activation_is_inferred(tmp_path: Path) -> None:
    facts = chain(tmp_path)
    inner = [f for f in facts.tensors.values() if f.role is TensorRole.ACTIVATION]
    assert inner == [TensorFact(TensorRole.ACTIVATION, "float", (-1, 6))]


def test_a_graph_that_onnx_cannot_infer_has_facts_without_shapes(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    h = graph.node("Unheard", [x], "odd")
    y = graph.node("Relu", [h], "act")
    graph.output(y, ("N", 4))
    facts = facts_of(graph, tmp_path)
    assert facts.tensors[h] == TensorFact(TensorRole.ACTIVATION, None, None)


def weights(op: str, shape: tuple[int, ...], tmp_path: Path, **attributes: Any) -> TensorFact:
    """The facts of a weight that one node reads, as it is stored."""
    spread = (1,) * (len(shape) - 2)
    node = helper.make_node(op, ["x", "w"], ["y"], "n", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, *spread])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), "w")],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(_model(graph).SerializeToString())
    return read_graph_facts(path).tensors["w"]


def _model(graph: GraphProto) -> ModelProto:
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("MatMul", (4, 6), {}, 1),
        ("Gemm", (4, 6), {}, 1),
        ("Gemm", (6, 4), {"transB": 1}, 0),
        ("Conv", (6, 4, 1, 1), {}, 0),
        ("ConvTranspose", (4, 6, 1, 1), {}, 1),
        ("Mul", (1, 4), {}, None),
    ],
)
def test_the_axis_of_the_output_channels(
    tmp_path: Path, op: str, shape: tuple[int, ...], attributes: dict[str, Any], axis: int | None
) -> None:
    assert weights(op, shape, tmp_path, **attributes).axis == axis


def test_the_axis_is_that_of_the_stored_tensor_behind_a_transpose(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w = graph.weight("w", 6, 4)
    turned = graph.node("Transpose", [w], "turn", perm=[1, 0])
    graph.output(graph.node("MatMul", [x, turned], "product"), ("N", 6))
    assert facts_of(graph, tmp_path).tensors["w"].axis == 0


def test_a_weight_that_is_read_in_two_ways_has_no_axis(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w = graph.weight("w", 4, 4)
    h = graph.node("MatMul", [x, w], "one")
    graph.output(graph.node("Gemm", [h, w], "other", transB=1), ("N", 4))
    assert facts_of(graph, tmp_path).tensors["w"].axis is None


def test_a_chain_before_a_weight_is_followed_for_16_nodes(tmp_path: Path) -> None:
    """So that many readers behind a long one take no quadratic time."""

    def axis(nodes: int) -> int | None:
        graph = GraphBuilder()
        x = graph.input("x", ("N", 4))
        w = graph.weight("w", 4, 4)
        for number in range(nodes):
            w = graph.node("Identity", [w], f"copy_{number}")
        graph.output(graph.node("MatMul", [x, w], "product"), ("N", 4))
        return facts_of(graph, tmp_path).tensors["w"].axis

    assert (axis(16), axis(17)) == (1, None)


def test_an_input_with_a_default_is_a_parameter(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w = graph.weight("w", 4, 6)
    graph.input("w", (4, 6))
    graph.output(graph.node("MatMul", [x, w], "product"), ("N", 6))
    fact = facts_of(graph, tmp_path).tensors["w"]
    assert (fact.role, fact.is_param, fact.axis) == (TensorRole.OVERRIDABLE, True, 1)


def test_constants_of_nodes_are_initializers(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.zeros((2, 3), np.float32))
    cases: list[tuple[dict[str, Any], str | None, tuple[int, ...] | None]] = [
        ({"value": values}, "float", (2, 3)),
        ({"value_float": 1.5}, "float", ()),
        ({"value_ints": [1, 2]}, "int64", (2,)),
        ({"value_string": "x"}, None, None),
    ]
    for number, (given, dtype, shape) in enumerate(cases):
        node = helper.make_node("Constant", [], ["c"], "constant", **given)
        end = helper.make_node("Identity", ["c"], ["y"])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(
            _model(helper.make_graph([node, end], "g", [], [output])).SerializeToString()
        )
        facts = read_graph_facts(path)
        assert facts.tensors["c"] == TensorFact(TensorRole.INITIALIZER, dtype, shape)
        assert facts.nodes["y"] == "Identity", "a node without a name goes by its output"


def test_what_cannot_be_read_is_an_error_of_the_graph_room(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputMissingError):
        read_graph_facts(path)
    path.write_bytes(b"no graph")
    with pytest.raises(GraphError):
        read_graph_facts(path)


def test_time_grows_with_the_nodes(tmp_path: Path) -> None:
    paths = [make_large(tmp_path / f"{layers}.onnx", layers) for layers in (10, 40)]
    small, large = (
        min(cpu_seconds(partial(read_graph_facts, path)) for _ in range(2)) for path in paths
    )
    # Four times the nodes; a quadratic step would take sixteen times as long.
    assert large < 10 * small + 0.1
