"""Loading a graph: what is refused, and with which words; weights are never read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError, InputMissingError, LoraQuantError, Where
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.files import model_file
from lora_quant.graph.files.model_file import load_model, serialize
from tests.builders import GraphBuilder, attention, save


def linear_model(**options: Any) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.matmul("/fc/MatMul", x, in_features=4, out_features=6, weight="fc.weight")
    graph.output(y, ("N", 6))
    return graph.model(**options)


def test_a_graph_is_read_without_its_weights(tmp_path: Path) -> None:
    path = save(attention().model(), tmp_path / "model.onnx", external=True)
    loaded = load_model(path)
    (data,) = loaded.data_files
    assert (data.location, data.path) == ("model.data", tmp_path / "model.data")
    assert data.size == (tmp_path / "model.data").stat().st_size
    assert all(not t.raw_data for t in loaded.proto.graph.initializer)
    assert loaded.opset == 17
    assert serialize(loaded.proto, Where()) == path.read_bytes()


def test_the_size_of_the_data_does_not_matter(tmp_path: Path) -> None:
    path = save(attention().model(), tmp_path / "model.onnx", external=True)
    os.truncate(tmp_path / "model.data", 1 << 36)  # sparse: it would take minutes to read
    (data,) = open_base(path).model.data_files
    assert data.size == 1 << 36


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"does not exist[\s\S]*absent\.onnx") as caught:
        load_model(tmp_path / "absent.onnx")
    assert "relative paths start at its folder" in str(caught.value)
    with pytest.raises(InputMissingError, match="does not exist"):
        load_model(Path("nul\0byte.onnx"))


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="cannot be read: Is a directory"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"once upon a time", b"\x00" * 64, b"PK\x03\x04", b'{"irVersion": "8"}'],
    ids=["text", "zeros", "zip", "json"],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    # The extension does not choose a parser: an ONNX file is protobuf.
    for name in ("model.onnx", "model.json", "model.txt"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(GraphError, match="not a readable ONNX file"):
            load_model(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(GraphError, match="holds no graph"):
        load_model(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    data = linear_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(GraphError):
            open_base(path)


def test_a_file_above_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(linear_model(), tmp_path / "model.onnx")
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 100)
    with pytest.raises(GraphError, match="larger than the 2 GiB that an ONNX file can hold"):
        load_model(path)


def test_a_graph_above_the_limit_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = load_model(save(linear_model(), tmp_path / "model.onnx")).proto
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 100)
    with pytest.raises(GraphError, match=r"would take \d+ bytes, more than the 2 GiB") as caught:
        serialize(proto, Where(file=Path("model.onnx")))
    assert "save the base graph with external data" in str(caught.value)


@pytest.mark.parametrize(("opset", "ir"), [(6, 4), (17, 3)])
def test_old_versions(tmp_path: Path, opset: int, ir: int) -> None:
    path = save(linear_model(opset=opset, ir_version=ir), tmp_path / "model.onnx")
    message = f"opset {opset}, IR version {ir}; expected at least opset 7 and IR version 4"
    with pytest.raises(GraphError, match=message):
        load_model(path)


def break_order(model: ModelProto) -> None:
    model.graph.node.add(op_type="Neg", input=["later"], output=["early"])
    model.graph.node.add(op_type="Neg", input=["early"], output=["later"])


def break_reference(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def break_uniqueness(model: ModelProto) -> None:
    model.graph.node.add(op_type="Neg", input=["x"], output=["/fc/MatMul_output_0"])


def overwrite_weight(model: ModelProto) -> None:
    model.graph.node.add(op_type="Neg", input=["x"], output=["fc.weight"])


def double_weight(model: ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def double_input(model: ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])


def lose_output(model: ModelProto) -> None:
    model.graph.output[0].name = "nothing"


def lose_operand(model: ModelProto) -> None:
    del model.graph.node[0].input[1]


def empty_operand(model: ModelProto) -> None:
    model.graph.node[0].input[1] = ""


def lose_product(model: ModelProto) -> None:
    del model.graph.node[0].output[:]
    del model.graph.output[:]


def spoil_attribute(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Gemm"
    model.graph.node[0].attribute.append(helper.make_attribute("transB", [1, 2]))


def cast_to_nothing(model: ModelProto) -> None:
    model.graph.node.add(op_type="Cast", input=["x"], output=["z"])


def add_three(model: ModelProto) -> None:
    model.graph.node.add(op_type="Add", input=["x", "x", "x"], output=["z"])


def refer_to_a_function(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Gemm"
    model.graph.node[0].attribute.add(name="transB", type=2, ref_attr_name="of_a_function")


def leave_a_type_out(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="anything", i=3)


def lose_the_name_of_an_output(model: ModelProto) -> None:
    model.graph.output[0].name = ""


def import_a_huge_version(model: ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=2**40)


def negative_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def huge_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**62


def unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 999


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_order, "'later' is read before it is produced: the nodes are not in topological"),
        (break_reference, "'nowhere' is neither an input, an initializer nor the output"),
        (break_uniqueness, "'/fc/MatMul_output_0' is defined twice"),
        (overwrite_weight, "'fc.weight' is defined twice"),
        (double_weight, "two graph inputs or two initializers have one name"),
        (double_input, "two graph inputs or two initializers have one name"),
        (lose_output, "no node produces the graph output 'nothing'"),
        (lose_operand, r"a MatMul node has inputs \['x'\] and outputs .* expected at least 2"),
        (empty_operand, r"a MatMul node has inputs \['x', ''\]"),
        (lose_product, r"a MatMul node has inputs \['x', 'fc.weight'\] and outputs \[\]"),
        (spoil_attribute, "attribute 'transB' of a Gemm node is of another type than INT"),
        (cast_to_nothing, "a Cast node has no attribute 'to'"),
        (add_three, r"a Add node has inputs \['x', 'x', 'x'\], expected 2 and no more"),
        (refer_to_a_function, "attribute 'transB' of a Gemm node refers to that of a function"),
        (leave_a_type_out, "attribute 'anything' of a MatMul node has no type"),
        (lose_the_name_of_an_output, "no node produces the graph output ''"),
        (import_a_huge_version, "imports version 1099511627776 of the operators of 'com.micro"),
        (negative_size, r"shape \[-4, 6\], expected no negative size"),
        (huge_size, r"needs \d+ bytes, more than the whole file of \d+"),
        (unknown_type, "element type 999, which this version of onnx does not know"),
    ],
)
def test_a_damaged_graph(
    tmp_path: Path, damage: Callable[[ModelProto], None], message: str
) -> None:
    model = linear_model()
    damage(model)
    with pytest.raises(GraphError, match=message):
        open_base(save(model, tmp_path / "model.onnx"))


@pytest.mark.parametrize("text", ["/fc/MatMul", "fc.weight", "x"])
def test_names_that_are_not_text(tmp_path: Path, text: str) -> None:
    data = linear_model().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data.replace(text.encode(), b"\xff" * len(text)))
    with pytest.raises(GraphError, match="name that is not UTF-8 text"):
        open_base(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_leave_the_error_tree(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(attention(layers=1).model(ir_version=10).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        open_base(path)
    except LoraQuantError as error:
        assert str(path) in str(error)  # noqa: PT017  (either outcome is right)


def test_an_empty_weight_is_no_attach_point(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.initializer[0].CopyFrom(
        TensorProto(name="fc.weight", data_type=TensorProto.FLOAT, dims=[0, 2**62])
    )
    base = open_base(save(model, tmp_path / "model.onnx"))
    assert base.catalog.refused["fc"].reason == f"its weight is empty, of shape [0, {2**62}]"


def test_initializers_may_be_inputs_as_well(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.input.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [4, 6]))
    base = open_base(save(model, tmp_path / "model.onnx"))
    (linear,) = base.catalog.linears.values()
    assert (linear.weight, linear.in_features, linear.out_features) == ("fc.weight", 4, 6)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_nobody_waits_for_the_other_end_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InputMissingError, match="not a regular file"):
        load_model(tmp_path / "model.onnx")
