"""Graphs with branches held against their base: what exporters write, and what has to be equal."""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.exported.compare import compare_with_base
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import Correspondence
from tests.builders import GraphBuilder, save
from tests.timing import cpu_seconds

EXPORTS = Path(__file__).resolve().parents[2] / "fixtures" / "exports"
BRANCHES = EXPORTS / "branches"
FURTHER = EXPORTS.parent / "branch_exports"
AIMET = EXPORTS.parent / "aimet" / "network"
SAMPLE = Path(__file__).resolve().parents[3] / "samples" / "tiny_llama"


def compare(base: Path, other: Path) -> Correspondence:
    return compare_with_base(open_base(base), recognise_branches(open_base(other)))


def refused(base: Path, other: Path) -> GraphError:
    with pytest.raises(GraphError) as caught:
        compare(base, other)
    assert str(base) in caught.value.message
    assert caught.value.where.file == other
    return caught.value


def linear(path: Path, **changes: Any) -> Path:
    """x -> MatMul -> Relu -> y; `changes` of the finished model: weight, output, shape."""
    graph = GraphBuilder()
    x = graph.input("x", changes.get("shape", ("batch", 4)))
    weight = changes.get("weight", np.arange(16, dtype=np.float32).reshape(4, 4))
    graph.constant("w", weight)
    product = graph.node("MatMul", [x, "w"], "/q/MatMul")
    y = graph.node("Relu", [product], "/Relu", changes.get("output", "y"))
    graph.output(y, changes.get("shape", ("batch", 4)))
    model = graph.model(opset=changes.get("opset", 17))
    return save(model, path, external=changes.get("external", False))


@pytest.mark.parametrize("name", ["peft", "peft_two", "scaled_between"])
def test_what_torch_exports_of_a_peft_model_is_the_plain_export(name: str) -> None:
    found = compare(BRANCHES / "plain.onnx", BRANCHES / f"{name}.onnx")
    weights = {n: p for n, p in found.tensors.items() if p.startswith("onnx::MatMul")}
    assert set(weights.values()) == {"onnx::MatMul_18", "onnx::MatMul_19"}
    assert not set(weights) & set(weights.values())  # every number is another one
    assert found.tensors["/first/base_layer/Add_output_0"] == "/first/Add_output_0"
    assert found.tensors["first.base_layer.bias"] == "first.bias"
    assert found.tensors["x"] == "x"
    assert found.tensors["y"] == "y"
    assert "/first/Add_output_0" not in found.tensors  # the sum, which the base does not have
    assert "/first/Cast_output_0" not in found.tensors  # and the same by another name
    assert set(found.renamed) == {n for n, p in found.tensors.items() if n != p}
    # all weights and biases, 4 bytes a value, and the axes of Unsqueeze and Squeeze
    assert found.compared_bytes == 4 * (12 * 16 + 16 + 16 * 8 + 8 * 6) + 2 * 8
    assert found.shared_bytes == 0


def test_an_output_that_is_a_sum_is_the_output_of_the_base_node() -> None:
    found = compare(BRANCHES / "plain_conv.onnx", BRANCHES / "peft_conv.onnx")
    assert found.tensors == {
        "x": "x",
        "base_layer.weight": "weight",
        "/base_layer/Conv_output_0": "y",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dynamo_peft", {"linear_3": "linear_1", "val_5": "val_2", "val_8": "val_3"}),
        ("dynamo_two", {"linear_5": "linear_1", "val_8": "val_2", "val_11": "val_3"}),
    ],
)
def test_numbers_that_an_exporter_gives_are_those_of_other_values(
    name: str, expected: dict[str, str]
) -> None:
    """`linear_1` is the second product of the base; in the other graph it is A of the first."""
    found = compare(FURTHER / "plain" / "dynamo_net.onnx", FURTHER / f"{name}.onnx").tensors
    assert {n: p for n, p in found.items() if n.startswith(("linear", "val_")) and n != p} == (
        expected
    )
    assert "linear_1" not in found


@pytest.mark.parametrize("kind", ["half", "mixed"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_other_modules_and_half_precision(exporter: str, kind: str) -> None:
    base = FURTHER / "plain" / f"{exporter}_{kind}.onnx"
    other = FURTHER / f"{exporter}_{kind}.onnx"
    found = compare(base, other)
    graph = onnx.load(str(base)).graph
    needed = {name for node in graph.node for name in (*node.input, *node.output)}
    assert set(found.tensors.values()) == needed
    order = [t for n in onnx.load(str(other)).graph.node for t in (*n.input, *n.output)]
    places = [order.index(name) for name in found.renamed]
    assert places == sorted(places)


def test_an_h_that_is_cast_for_the_sum_is_the_base_s_own_before_that() -> None:
    found = compare(
        FURTHER / "plain" / "torchscript_half.onnx", FURTHER / "torchscript_half.onnx"
    ).tensors
    assert found["/first/Cast_1_output_0"] == "/first/Add_output_0"
    assert found["/first/base_layer/Add_output_0"] == "/first/Add_output_0"


def test_the_genai_builder_has_to_leave_q_k_and_v_apart_in_the_base() -> None:
    other = FURTHER / "genai_fp32" / "model.onnx"
    found = compare(FURTHER / "plain" / "genai_fp32" / "model.onnx", other)
    assert found.renamed == ()
    error = refused(EXPORTS / "genai_fp32" / "model.onnx", other)
    assert error.where.node == "/model/layers.0/attn/q_proj/MatMul"
    assert "are float of shape [32, 32], expected float of shape [32, 64]" in error.message


@pytest.mark.parametrize("adapter", ["a", "b"])
def test_a_graph_of_aimet_has_an_input_more(adapter: str) -> None:
    found = compare(AIMET / "base_plain.fp32.onnx", AIMET / f"lora_adapter_{adapter}.fp32.onnx")
    assert found.renamed == ()
    assert "lora_alpha" not in found.tensors
    assert set(found.tensors) >= {"x", "/q/MatMul_output_0", "q.weight", "/Sigmoid_output_0", "y"}


@pytest.mark.parametrize("use_case", ["tone", "legal", "style", "both"])
def test_the_use_cases_of_the_sample_have_the_names_of_its_base(use_case: str) -> None:
    base = SAMPLE / "model" / "model.onnx"
    found = compare(base, SAMPLE / "use_case_graphs" / f"{use_case}.onnx")
    assert found.renamed == ()
    wanted = onnx.load(str(base)).graph
    assert {t.name for t in wanted.initializer} <= set(found.tensors)
    assert {name for node in wanted.node for name in node.output} <= set(found.tensors)


@pytest.mark.parametrize(
    "name", ["torchscript", "dynamo", "genai_fp32", "genai_fp16", "genai_int4"]
)
def test_a_graph_is_itself(name: str) -> None:
    path = EXPORTS / name / "model.onnx"
    found = compare(path, path)
    assert found.renamed == ()
    assert (found.shared_bytes > 0) == name.startswith("genai")


def test_another_exporter_is_refused() -> None:
    error = refused(EXPORTS / "torchscript" / "model.onnx", EXPORTS / "dynamo" / "model.onnx")
    assert "operator set" in error.message


def test_the_plain_export_of_another_seed_is_refused_at_its_first_weight(tmp_path: Path) -> None:
    model = onnx.load(str(BRANCHES / "peft.onnx"))
    weight = next(t for t in model.graph.initializer if t.name == "onnx::MatMul_49")
    values = numpy_helper.to_array(weight).copy()
    values[3, 1] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    error = refused(BRANCHES / "plain.onnx", save(model, tmp_path / "other.onnx"))
    assert error.where.tensor == "onnx::MatMul_49"
    assert error.where.node == "/second/base_layer/MatMul"
    assert "'onnx::MatMul_49' (there 'onnx::MatMul_19')" in error.message
    assert f"from element {3 * 8 + 1} on" in error.message
    assert error.hint is not None
    assert "same checkpoint" in error.hint


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
    assert compare(base, save(model, tmp_path / "other.onnx")).renamed == ()


def test_another_opset_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    error = refused(base, linear(tmp_path / "other.onnx", opset=18))
    assert "version 18 of the operator set 'ai.onnx', expected 17" in error.message


def test_a_domain_that_no_node_uses_does_not_matter(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    compare(base, save(model, tmp_path / "other.onnx"))


def test_sizes_may_have_other_names(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    compare(base, linear(tmp_path / "other.onnx", shape=("n", 4)))


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


def test_float_data_equals_raw_data(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = onnx.load(str(base))
    values = numpy_helper.to_array(model.graph.initializer[0])
    typed = helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel().tolist())
    model.graph.initializer[0].CopyFrom(typed)
    assert compare(base, save(model, tmp_path / "other.onnx")).compared_bytes == 64


@pytest.mark.parametrize(
    ("element", "values"),
    [
        (TensorProto.BOOL, [True, False, True]),
        (TensorProto.FLOAT16, [0.5, -2.0, 6e-8]),
        (TensorProto.BFLOAT16, [0.5, -2.0, 1e30]),
        (TensorProto.INT8, [-128, 0, 127]),
        (TensorProto.UINT16, [0, 1, 65535]),
        (TensorProto.UINT32, [0, 1, 2**32 - 1]),
        (TensorProto.UINT64, [0, 1, 2**64 - 1]),
        (TensorProto.INT64, [-(2**63), 0, 1]),
        (TensorProto.DOUBLE, [0.1, -1e300, 5e-324]),
        (TensorProto.INT4, [-8, 7, 1]),
        (TensorProto.FLOAT8E4M3FN, [0.5, -2.0, 448.0]),
    ],
)
def test_typed_fields_equal_raw_bytes_of_every_type(
    tmp_path: Path, element: int, values: list[Any]
) -> None:
    def holding(path: Path, tensor: TensorProto) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Shape", ["t"], ["y"], name="/Shape")],
            "one",
            [],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [1])],
            [tensor],
        )
        opsets = [helper.make_opsetid("", 21)]
        return save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)

    typed = helper.make_tensor("t", element, [3], values)
    assert not typed.HasField("raw_data")
    raw = numpy_helper.from_array(numpy_helper.to_array(typed), "t")
    assert raw.HasField("raw_data")
    base = holding(tmp_path / "base.onnx", raw)
    assert compare(base, holding(tmp_path / "typed.onnx", typed)).tensors["t"] == "t"


def test_strings_are_compared(tmp_path: Path) -> None:
    def holding(path: Path, texts: list[bytes]) -> Path:
        tensor = TensorProto(name="t", data_type=TensorProto.STRING, dims=[2], string_data=texts)
        graph = helper.make_graph(
            [helper.make_node("Shape", ["t"], ["y"], name="/Shape")],
            "one",
            [],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [1])],
            [tensor],
        )
        return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)

    base = holding(tmp_path / "base.onnx", [b"ab", b"c"])
    compare(base, holding(tmp_path / "same.onnx", [b"ab", b"c"]))
    assert refused(base, holding(tmp_path / "other.onnx", [b"a", b"bc"])).where.tensor == "t"


def test_a_weight_of_another_type_is_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    weight = np.arange(16, dtype=np.float16).reshape(4, 4)
    error = refused(base, linear(tmp_path / "other.onnx", weight=weight))
    assert "are float16 of shape [4, 4], expected float of shape [4, 4]" in error.message


def loop(path: Path, *, prefix: str = "", factor: float = 2.0, reads: str = "x") -> Path:
    """x and z -> If(flag): `reads` * factor, else z; names inside begin with `prefix`."""

    def body(name: str, read: str, value: float) -> onnx.GraphProto:
        made = [
            helper.make_node(
                "Constant",
                [],
                [f"{prefix}c"],
                value=numpy_helper.from_array(np.array(value, np.float32)),
            ),
            helper.make_node("Mul", [read, f"{prefix}c"], [f"{prefix}{name}"], name=f"{prefix}n"),
        ]
        output = helper.make_tensor_value_info(f"{prefix}{name}", TensorProto.FLOAT, [2])
        return helper.make_graph(made, f"{prefix}g", [], [output])

    node = helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="/If",
        then_branch=body("then", reads, factor),
        else_branch=body("else", "z", 1.0),
    )
    graph = helper.make_graph(
        [node],
        "if",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def test_names_inside_of_subgraphs_do_not_matter(tmp_path: Path) -> None:
    base = loop(tmp_path / "base.onnx")
    assert compare(base, loop(tmp_path / "other.onnx", prefix="other_")).renamed == ()


def test_another_value_inside_of_a_subgraph_is_refused(tmp_path: Path) -> None:
    error = refused(loop(tmp_path / "base.onnx"), loop(tmp_path / "other.onnx", factor=3.0))
    assert error.where.node == "/If"
    assert "another 'then_branch' than the base's" in error.message


def test_a_subgraph_that_reads_another_tensor_is_refused(tmp_path: Path) -> None:
    error = refused(loop(tmp_path / "base.onnx"), loop(tmp_path / "other.onnx", reads="z"))
    assert error.where.node == "/If"


def test_a_weight_that_only_a_subgraph_reads_is_compared_to_the_last_byte(tmp_path: Path) -> None:
    """128 KiB, told apart by three samples at first; the difference lies between them."""

    def reading(path: Path, value: float) -> Path:
        weight = np.zeros(1 << 15, np.float32)
        weight[5000] = value
        model = onnx.load(str(loop(path, reads="w")))
        model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        return save(model, path)

    base = reading(tmp_path / "base.onnx", 1.0)
    assert compare(base, reading(tmp_path / "same.onnx", 1.0)).tensors["w"] == "w"
    error = refused(base, reading(tmp_path / "other.onnx", 2.0))
    assert error.where.tensor == "w"
    assert "from element 5000 on: got 2.0, expected 1.0" in error.message


def test_a_subgraph_that_reads_what_is_not_there_is_damaged(tmp_path: Path) -> None:
    base = loop(tmp_path / "base.onnx")
    other = loop(tmp_path / "other.onnx", reads="nothing")
    with pytest.raises(GraphError, match="reads the tensor 'nothing'") as caught:
        compare(base, other)
    assert caught.value.where.node == "/If"


def function(path: Path, *, inner: str = "t", operator: str = "Relu") -> Path:
    """x -> a model-local function (Neg, then `operator`) -> y."""
    body = helper.make_function(
        "own",
        "Block",
        ["i"],
        ["o"],
        [
            helper.make_node("Neg", ["i"], [inner]),
            helper.make_node(operator, [inner], ["o"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], name="/Block", domain="own")],
        "calls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[body])
    return save(model, path)


def test_functions_are_compared_by_their_bodies(tmp_path: Path) -> None:
    base = function(tmp_path / "base.onnx")
    compare(base, function(tmp_path / "renamed.onnx", inner="u"))
    error = refused(base, function(tmp_path / "other.onnx", operator="Tanh"))
    assert error.where.node == "/Block"
    assert "with another body" in error.message


def test_two_copies_of_a_constant_are_paired_by_what_reads_them(tmp_path: Path) -> None:
    def scaled(path: Path, first: str, second: str, third: str) -> Path:
        graph = GraphBuilder()
        value = graph.input("x", (2, 4))
        for number, name in enumerate((first, second, third)):
            graph.constant(name, np.ones(4, np.float32))
            value = graph.node("Mul", [value, name], f"/{number}/Mul")
        graph.output(value, (2, 4))
        return graph.save(path)

    base = scaled(tmp_path / "base.onnx", "val_1", "val_2", "val_3")
    found = compare(base, scaled(tmp_path / "other.onnx", "val_7", "val_5", "val_6"))
    assert {n: found.tensors[n] for n in ("val_7", "val_5", "val_6")} == {
        "val_7": "val_1",
        "val_5": "val_2",
        "val_6": "val_3",
    }


def test_a_constant_that_one_exporter_shares_is_the_first_copy(tmp_path: Path) -> None:
    def scaled(path: Path, names: tuple[str, str]) -> Path:
        graph = GraphBuilder()
        value = graph.input("x", (2, 4))
        for number, name in enumerate(names):
            graph.constant(name, np.ones(4, np.float32))
            value = graph.node("Mul", [value, name], f"/{number}/Mul")
        graph.output(value, (2, 4))
        return graph.save(path)

    base = scaled(tmp_path / "base.onnx", ("one", "one"))
    assert compare(base, scaled(tmp_path / "o.onnx", ("a", "b"))).tensors["b"] == "one"
    two = scaled(tmp_path / "two.onnx", ("a", "b"))
    assert compare(two, base).tensors["one"] == "a"


def test_large_weights_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Two weights of 128 KiB that differ where no sample is taken, swapped by the other graph."""

    def two(path: Path, order: tuple[int, int]) -> Path:
        graph = GraphBuilder()
        x = graph.input("x", (2, 128))
        weights = [np.zeros((128, 256), np.float32), np.zeros((128, 256), np.float32)]
        weights[1][20, 0] = 1.0
        graph.constant("first", weights[order[0]])
        graph.constant("second", weights[order[1]])
        one = graph.node("MatMul", [x, "first"], "/one/MatMul")
        graph.output(graph.node("Relu", [one], "/Relu", "y"), (2, 256))
        graph.output(graph.node("MatMul", [x, "second"], "/two/MatMul", "z"), (2, 256))
        return graph.save(path)

    base = two(tmp_path / "base.onnx", (0, 1))
    compare(base, two(tmp_path / "same.onnx", (0, 1)))
    assert refused(base, two(tmp_path / "swapped.onnx", (1, 0))).where.node == "/Relu"


def write_external(path: Path, megabytes: int, flipped: int | None = None) -> Path:
    """x -> MatMul by a weight in a data file, all but one value written block by block."""
    linear(path, external=False)
    model = onnx.load(str(path))
    weight = model.graph.initializer[0]
    columns = megabytes << 16  # 4 rows of float32
    convert_model_to_external_data(model, location=f"{path.stem}.data", size_threshold=0)
    weight.CopyFrom(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, columns]))
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=f"{path.stem}.data")
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = columns
    path.write_bytes(model.SerializeToString())
    block = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8).tobytes()
    with (path.parent / f"{path.stem}.data").open("wb") as file:
        for _ in range(megabytes):
            file.write(block)
        if flipped is not None:
            file.seek(flipped)
            file.write(bytes([block[flipped % len(block)] ^ 1]))
    return path


def test_weights_in_data_files_are_compared_in_blocks(tmp_path: Path) -> None:
    """Two buffers of a MiB, and what opening two small graphs takes."""
    base = open_base(write_external(tmp_path / "base.onnx", 64))
    other = recognise_branches(open_base(write_external(tmp_path / "other.onnx", 64)))
    tracemalloc.start()
    found = compare_with_base(base, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.compared_bytes == 64 << 20
    assert peak < 3 << 20


def test_one_bit_far_inside_a_weight_is_found(tmp_path: Path) -> None:
    base = write_external(tmp_path / "base.onnx", 4)
    byte = (3 << 20) + 12345
    error = refused(base, write_external(tmp_path / "other.onnx", 4, flipped=byte))
    assert error.where.tensor == "w"
    assert f"from element {byte // 4} on" in error.message


def test_a_weight_at_the_same_place_of_one_file_is_not_read(tmp_path: Path) -> None:
    base = write_external(tmp_path / "base.onnx", 1)
    other = tmp_path / "other.onnx"
    other.write_bytes(base.read_bytes())
    found = compare(base, other)
    assert found.shared_bytes == 1 << 20
    assert found.compared_bytes == 0


def test_a_data_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    base = open_base(write_external(tmp_path / "base.onnx", 2))
    other = recognise_branches(open_base(write_external(tmp_path / "other.onnx", 2)))
    with (tmp_path / "other.data").open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(InputMissingError, match="ended"):
        compare_with_base(base, other)


def chain(path: Path, length: int) -> Path:
    graph = GraphBuilder()
    value = graph.input("x", (2, 4))
    graph.constant("one", np.ones(4, np.float32))
    for number in range(length):
        value = graph.node("Add", [value, "one"], f"/{number}/Add")
    graph.output(value, (2, 4))
    return graph.save(path)


def test_time_grows_with_the_nodes(tmp_path: Path) -> None:
    """Four times the nodes take less than eight times as long; a quadratic walk takes sixteen."""
    seconds = []
    for length in (1_000, 4_000):
        base = open_base(chain(tmp_path / f"{length}.onnx", length))
        other = recognise_branches(open_base(chain(tmp_path / f"{length}_o.onnx", length)))
        seconds.append(min(cpu_seconds(partial(compare_with_base, base, other)) for _ in range(3)))
    assert seconds[1] < 8 * seconds[0]


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    base = linear(tmp_path / "base.onnx")
    model = ModelProto.FromString(base.read_bytes())
    weight = model.graph.initializer[0]
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    model.graph.initializer.remove(weight)
    other = save(model, tmp_path / "other.onnx")
    with pytest.raises(GraphError, match="sparse initializer"):
        compare(base, other)
