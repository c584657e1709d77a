"""What of inputs, outputs, sizes and operator sets has to be equal, and what does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builders import GraphBuilder, save
from tests.graph.exported.comparing import compare, linear, refused, renamed


def test_metadata_and_ir_version_do_not_matter(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    model.ir_version = 10
    model.graph.doc_string = model.graph.name = "another"
    model.metadata_props.add(key="a", value="b")
    model.graph.node[0].doc_string = "a product"
    model.graph.node[0].metadata_props.add(key="pkg", value="c")
    model.graph.value_info.append(
        helper.make_tensor_value_info("/q/MatMul_output_0", TensorProto.FLOAT, ["batch", 4])
    )
    assert renamed(compare(base, save(model, tmp_path / "other.onnx"))) == []


def test_another_opset_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    error = refused(base, linear(tmp_path / "other.onnx", opset=18))
    assert "version 18 of the operator set 'ai.onnx', expected 17" in error.message


def test_a_domain_that_no_node_uses_does_not_matter(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert renamed(compare(base, save(model, tmp_path / "other.onnx"))) == []


def test_sizes_may_have_other_names(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    assert renamed(compare(base, linear(tmp_path / "other.onnx", shape=("n", 4)))) == []


def test_a_size_that_only_one_graph_fixes_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    error = refused(base, linear(tmp_path / "other.onnx", shape=(2, 4)))
    assert "input 'x' is float of shape [2, 4], expected float of shape [batch, 4]" in error.message
    assert error.where.tensor == "x"


def two_inputs(path: Path, first: tuple[str, int], second: tuple[str, int]) -> Path:
    graph = GraphBuilder()
    names = [graph.input("x", first), graph.input("z", second)]
    graph.output(graph.node("Concat", names, "/Concat", "y", axis=0), ("all", 4))
    return graph.save(path)


def test_names_of_sizes_have_to_stand_for_the_same(tmp_path: Path) -> None:
    base = two_inputs(tmp_path / "base.onnx", ("a", 4), ("b", 4))
    compare(base, two_inputs(tmp_path / "swapped.onnx", ("b", 4), ("a", 4)))
    error = refused(base, two_inputs(tmp_path / "one.onnx", ("a", 4), ("a", 4)))
    assert error.where.tensor == "z"


def test_shapes_that_both_graphs_tell_have_to_agree(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    name = "/q/MatMul_output_0"
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]))
    base = save(model, tmp_path / "told.onnx")
    model.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 5
    error = refused(base, save(model, tmp_path / "other.onnx"))
    assert f"tensor {name!r} is float of shape [?, 5], expected float of shape [?, 4]" in (
        error.message
    )
    assert error.where.tensor == name


def test_an_output_too_many_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    model.graph.output.add(name="/q/MatMul_output_0")
    assert "2 outputs, expected 1" in refused(base, save(model, tmp_path / "o.onnx")).message


def test_outputs_that_swap_their_names_are_refused(tmp_path: Path) -> None:
    def two(path: Path, first: str, second: str) -> Path:
        graph = GraphBuilder()
        x = graph.input("x", (2, 4))
        graph.output(graph.node("Relu", [x], "/Relu", first), (2, 4))
        graph.output(graph.node("Tanh", [x], "/Tanh", second), (2, 4))
        return graph.save(path)

    base = two(tmp_path / "base.onnx", "one", "two")
    error = refused(base, two(tmp_path / "other.onnx", "two", "one"))
    assert "not what the base gives as" in error.message
    compare(base, two(tmp_path / "renamed.onnx", "first", "second"))


def test_an_input_that_the_branches_do_not_explain_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    model.graph.input.append(helper.make_tensor_value_info("gate", TensorProto.FLOAT, [4]))
    model.graph.node[1].input[0] = "gated"
    model.graph.node.insert(
        1, helper.make_node("Mul", ["/q/MatMul_output_0", "gate"], ["gated"], name="/Gate")
    )
    error = refused(base, save(model, tmp_path / "other.onnx"))
    assert error.where.tensor == "gate"


def test_what_is_not_a_branch_is_not_in_the_base(tmp_path: Path) -> None:
    """A Tanh between A and B: the nodes are not taken, so they are in the way."""
    base = linear(tmp_path / "base.onnx")
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 4))
    graph.constant("w", np.arange(16, dtype=np.float32).reshape(4, 4))
    h = graph.node("MatMul", [x, "w"], "/q/MatMul")
    a = graph.matmul("/q/lora_A/MatMul", x, in_features=4, out_features=2)
    m = graph.node("Tanh", [a], "/q/Tanh")
    branch = graph.matmul("/q/lora_B/MatMul", m, in_features=2, out_features=4)
    y = graph.node("Add", [h, branch], "/q/Add")
    graph.output(graph.node("Relu", [y], "/Relu", "y"), ("batch", 4))
    error = refused(base, graph.save(tmp_path / "other.onnx"))
    assert error.where.node == "/q/lora_A/MatMul"
    assert "is not in the base" in error.message
