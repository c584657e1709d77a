"""The branches: what is added, under which names, and that nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.base.graph_bytes import graph_bytes
from lora_quant.graph.branching.branches import AlphaLayout, add_branches
from lora_quant.graph.branching.updatable_weights import Role, updatable_weights
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.records import ReplacedParameter, TensorRecord
from tests.builders import GraphBuilder, attention, save
from tests.graph.helpers import (
    GOLDENS,
    all_points,
    branch,
    opened,
    printed,
    request,
    resolve,
    undone,
    with_extras,
)

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests/fixtures/exports"
NETWORK = ROOT / "tests/fixtures/aimet/network"
TINY_LLAMA = ROOT / "samples/tiny_llama/model/model.onnx"
REAL = [
    EXPORTS / "torchscript/model.onnx",
    EXPORTS / "dynamo/model.onnx",
    EXPORTS / "genai_fp32/model.onnx",
    EXPORTS / "genai_fp16/model.onnx",
    NETWORK / "base_plain.fp32.onnx",
    TINY_LLAMA,
]


def mixed() -> GraphBuilder:
    """A MatMul with a bias, a Gemm, a 1 x 1 and a strided 3 x 3 convolution."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 3, 8, 8))
    c = graph.node(
        "Conv",
        [x, graph.weight("conv.weight", 4, 3, 3, 3), graph.weight("conv.bias", 4)],
        "/conv/Conv",
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )
    graph.value(c, ("N", 4, 4, 4))
    p = graph.node("Conv", [c, graph.weight("point.weight", 4, 4, 1, 1)], "/point/Conv")
    f = graph.node("Flatten", [p], "/Flatten")
    m = graph.matmul("/first/MatMul", f, in_features=64, out_features=6)
    b = graph.node("Add", [graph.weight("first.bias", 6), m], "/first/Add")
    graph.value(b, ("N", 6))
    weights = [graph.weight("second.weight", 5, 6), graph.weight("second.bias", 5)]
    y = graph.node("Gemm", [b, *weights], "/second/Gemm", output="y", transB=1)
    graph.output(y, ("N", 5))
    return graph


def check_golden(name: str, text: str) -> None:
    path = GOLDENS / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text(encoding="utf-8"), (
        "the graph changed; if that is right: UPDATE_GOLDENS=1 python -m pytest tests/graph"
    )


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_a_branched_graph_reads_like_its_golden(tmp_path: Path, layout: AlphaLayout) -> None:
    base = opened(mixed().model(), tmp_path)
    branch(base, all_points(base), max_rank=4, slot_count=2, alpha_layout=layout)
    onnx.checker.check_model(base.model.proto, full_check=True)
    check_golden(f"mixed_{layout}.txt", printed(base.model.proto.graph))


def test_a_packed_projection_reads_like_its_golden(tmp_path: Path) -> None:
    base = opened(attention(layers=1, dtype="float16", style="packed").model(), tmp_path)
    points = resolve(
        base,
        [
            request("model.layers.0.self_attn.v_proj", 8, 4),
            request("model.layers.0.self_attn.q_proj", 8, 8),
            request("model.layers.0.self_attn.o_proj", 16, 8),
        ],
    ).points
    branch(base, points, max_rank=2, slot_count=1)
    onnx.checker.check_model(base.model.proto, full_check=True)
    check_golden("packed_float16.txt", printed(base.model.proto.graph))


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("vectors", ["", "ghc"])
@pytest.mark.parametrize("path", REAL, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_is_not_added_is_byte_for_byte_the_base(
    path: Path, vectors: str, layout: AlphaLayout
) -> None:
    before = onnx.load(str(path), load_external_data=False)
    base = open_base(path)
    points = [with_extras(point, vectors) for point in all_points(base)]
    branched = branch(base, points, alpha_layout=layout)
    assert len(branched.branches) >= 4
    assert len(branched.vectors) == len(vectors) * len(points)
    assert serialize_of(base.model.proto) != serialize_of(before)
    assert serialize_of(undone(base.model.proto, branched)) == serialize_of(before)


def serialize_of(model: ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def rich_model() -> ModelProto:
    """A model with everything around its nodes that an edit could lose."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    flag = graph.input("flag", (), "bool")
    y = graph.matmul("/first/MatMul", x, in_features=4, out_features=6)
    graph.value(y, ("N", 6))
    bodies = {f"{name}_branch": captured(y, name) for name in ("then", "else")}
    z = graph.node("If", [flag], "/choose/If", **bodies)
    w = graph.node("Double", [z], "/custom/Double", domain="tiny.functions")
    graph.output(w, ("N", 6))
    model = graph.model(opset=21, ir_version=10, other_domains=["tiny.functions"])
    double = helper.make_function(
        "tiny.functions",
        "Double",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"], name="/first/lora_add/Add")],
        [helper.make_opsetid("", 21)],
    )
    model.functions.append(double)
    model.doc_string = "a model"
    model.producer_name = "somebody"
    model.metadata_props.add(key="origin", value="test")
    model.graph.doc_string = "a graph"
    for node in model.graph.node:
        node.doc_string = f"line of {node.name}"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=node.name)
    model.graph.value_info[0].metadata_props.add(key="note", value="of y")
    annotation = model.graph.quantization_annotation.add(tensor_name=y)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="y_scale")
    other = model.graph.quantization_annotation.add(tensor_name="x")
    other.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x_scale")
    return model


def captured(tensor: str, name: str) -> onnx.GraphProto:
    """A subgraph that reads a tensor of the graph around it."""
    node = helper.make_node("Neg" if name == "then" else "Identity", [tensor], [f"{name}_out"])
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 6])
    return helper.make_graph([node], name, [], [output])


def test_metadata_functions_subgraphs_and_annotations_stay(tmp_path: Path) -> None:
    before = rich_model()
    base = opened(before, tmp_path)
    branched = branch(base, all_points(base))
    after = base.model.proto
    onnx.checker.check_model(after, full_check=True)
    assert serialize_of(undone(after, branched)) == serialize_of(before)
    assert [a.tensor_name for a in after.graph.quantization_annotation] == [
        "/first/MatMul_output_0",
        "x",
        "/first/MatMul_output_0_base",
    ]
    copied = after.graph.quantization_annotation[2].quant_parameter_tensor_names
    assert [(entry.key, entry.value) for entry in copied] == [("SCALE_TENSOR", "y_scale")]


def test_added_nodes_carry_no_metadata(tmp_path: Path) -> None:
    # Their names tell the module, and models before IR version 10 have no place for it.
    base = opened(rich_model(), tmp_path)
    branch(base, all_points(base))
    added = [n for n in base.model.proto.graph.node if "lora" in n.name]
    assert len(added) == 5
    assert not any(n.metadata_props or n.doc_string for n in added)


@pytest.mark.parametrize(("opset", "ir"), [(7, 4), (11, 6), (13, 7), (17, 8), (21, 10), (23, 11)])
def test_every_opset_from_7_on_passes_the_checker(tmp_path: Path, opset: int, ir: int) -> None:
    base = opened(mixed().model(opset=opset, ir_version=ir), tmp_path)
    branch(base, all_points(base))
    path = save(base.model.proto, tmp_path / "branched.onnx")
    check_model_file(path)


def test_bfloat16_graphs_pass_the_checker(tmp_path: Path) -> None:
    base = opened(attention(dtype="bfloat16").model(), tmp_path)
    branched = branch(base, all_points(base))
    assert {b.a_weight.dtype for b in branched.branches} == {"bfloat16"}
    check_model_file(save(base.model.proto, tmp_path / "branched.onnx"))


def test_the_old_names_keep_their_consumers_and_types(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    (point,) = resolve(base, [request("second", 6, 5)]).points
    branched = branch(base, [point])
    (made,) = branched.branches
    assert (made.y, made.h) == ("y", "y_base")
    types = {v.name: v.type.tensor_type for v in base.model.proto.graph.value_info}
    assert [d.dim_param or d.dim_value for d in types[made.m].shape.dim] == ["N", 4]
    assert [d.dim_param or d.dim_value for d in types[made.h].shape.dim] == ["N", 5]


def test_a_taken_name_is_an_error_and_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    graph = attention(layers=1)
    graph.weight("model.layers.0.self_attn.o_proj.lora_B.weight", 2, 2)
    base = opened(graph.model(), tmp_path)
    before = serialize_of(base.model.proto)
    with pytest.raises(GraphError, match=r"already has .* 'model\.layers\.0\.self_attn\.o_proj"):
        branch(base, all_points(base))
    assert serialize_of(base.model.proto) == before


def test_a_graph_takes_branches_only_once(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    points = all_points(base)
    branch(base, points)
    with pytest.raises(GraphError, match="another --alpha-name; if the graph is final"):
        add_branches(
            base,
            points,
            max_rank=4,
            slot_count=1,
            alpha_name="strength",
            alpha_layout="slot",
        )


def test_the_alpha_name_must_be_free(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path)
    with pytest.raises(GraphError, match="'x', which the branches need"):
        add_branches(
            base, all_points(base), max_rank=4, slot_count=1, alpha_name="x", alpha_layout="slot"
        )


def test_the_same_calls_give_the_same_bytes(tmp_path: Path) -> None:
    results = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        base = opened(mixed().model(), tmp_path / folder)
        branch(base, all_points(base))
        results.append(graph_bytes(base, [], "zeros.data"))
    assert results[0] == results[1]


def test_weights_of_an_external_graph_share_one_block_of_zeros(tmp_path: Path) -> None:
    base = opened(attention(layers=1).model(), tmp_path, external=True)
    branched = branch(base, all_points(base), max_rank=4, slot_count=2)
    names = [w.name for b in branched.branches for w in (b.a_weight, b.b_weight)]
    names.append("lora_alpha.expansion")
    data = graph_bytes(base, names, "zeros.data")
    # The largest is o_proj's A, [16, 4] in float32.
    assert base.zeros.block_size == 16 * 4 * 4
    (tmp_path / "branched.onnx").write_bytes(data)
    (tmp_path / "zeros.data").write_bytes(bytes(base.zeros.block_size))
    check_model_file(tmp_path / "branched.onnx")
    model = onnx.load(str(tmp_path / "branched.onnx"))
    stored = {t.name: t for t in model.graph.initializer}
    for name in names:
        assert not onnx.numpy_helper.to_array(stored[name]).any()
    assert graph_bytes(base, names, "zeros.data") == data


def test_replaced_parameters_keep_the_values_of_the_base(tmp_path: Path) -> None:
    model = attention(layers=1).model()
    name = "model.layers.0.self_attn.q_proj.weight"
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}[name]
    base = opened(model, tmp_path, external=True)
    record = TensorRecord(name, (8, 8), "float32")
    replaced = ReplacedParameter("model.layers.0.self_attn.q_proj.weight", record, True)
    branched = add_branches(
        base,
        all_points(base),
        max_rank=4,
        slot_count=2,
        alpha_name="lora_alpha",
        alpha_layout="slot",
        replaced=[replaced],
    )
    assert branched.replaced == (replaced,)
    weights = updatable_weights(branched)
    assert (weights[-1].role, weights[-1].record, weights[-1].attach) == (
        Role.REPLACED,
        record,
        None,
    )
    data = graph_bytes(base, [weight.record.name for weight in weights], "zeros.data")
    (tmp_path / "branched.onnx").write_bytes(data)
    (tmp_path / "zeros.data").write_bytes(bytes(base.zeros.block_size))
    check_model_file(tmp_path / "branched.onnx")
    after = {t.name: t for t in onnx.load(str(tmp_path / "branched.onnx")).graph.initializer}
    assert np.array_equal(onnx.numpy_helper.to_array(after[name]), values)


@pytest.mark.parametrize("exporter", ["genai_fp32", "genai_fp16"])
def test_operators_of_onnx_runtime_are_passed_over(tmp_path: Path, exporter: str) -> None:
    base = open_base(EXPORTS / exporter / "model.onnx")
    branched = branch(base, all_points(base))
    names = [w.name for b in branched.branches for w in (b.a_weight, b.b_weight)]
    path = tmp_path / "branched.onnx"
    path.write_bytes(graph_bytes(base, [*names, "lora_alpha.expansion"], "zeros.data"))
    (tmp_path / "zeros.data").write_bytes(bytes(base.zeros.block_size))
    with pytest.raises(InputMissingError, match="external data file"):
        check_model_file(path)
    for file in base.model.data_files:
        (tmp_path / file.location).write_bytes(file.path.read_bytes())
    check_model_file(path)
    # The rest is checked none the less.
    model = onnx.load(str(path), load_external_data=False)
    wrong = next(n for n in model.graph.node if n.name.endswith("lora_scale/Mul"))
    wrong.attribute.append(helper.make_attribute("speed", 1))
    with pytest.raises(GraphError, match="Unrecognized attribute: speed"):
        check_model_file(save(model, tmp_path / "wrong.onnx"))


def test_a_graph_that_the_checker_refuses_is_an_error(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.node("MatMul", [x, graph.weight("w", 3, 6)], "/first/MatMul")
    graph.output(y, ("N", 6))
    path = graph.save(tmp_path / "model.onnx")
    with pytest.raises(GraphError, match=r"does not pass onnx\.checker: "):
        check_model_file(path)


def test_the_proto_is_edited_in_place(tmp_path: Path) -> None:
    base = opened(mixed().model(), tmp_path)
    proto = base.model.proto
    branch(base, all_points(base))
    assert base.model.proto is proto
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert not np.any(stored["first.lora_A.weight"])
