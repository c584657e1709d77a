"""Stored values are compared to the last bit, however and wherever files hold them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.exported.recognise import recognise_branches
from tests.builders import GraphBuilder, save
from tests.graph.exported.comparing import compare, compared, linear, refused


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
    found = compared(base, other)
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
        compared(base, other)


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
