"""Adapter files, read back and run by ONNX Runtime itself."""

from __future__ import annotations

import ctypes
import io
import math
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lora_quant.errors import PackDefectError, PackError
from lora_quant.graph.records import TensorRecord
from lora_quant.targets.files.onnx_adapter_writer import write_adapter

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "int64": np.int64,
}
Tensors = dict[str, NDArray[Any]]


def records_of(tensors: Tensors) -> list[TensorRecord]:
    return [TensorRecord(name, v.shape, v.dtype.name) for name, v in tensors.items()]


def write(tensors: Tensors, path: Path, *, adapter: int = 1, model: int = 2) -> Path:
    with path.open("wb") as file:
        write_adapter(
            file, records_of(tensors), tensors.items(), adapter_version=adapter, model_version=model
        )
    return path


def bytes_of(tensors: Tensors, *, adapter: int = 1, model: int = 2) -> bytes:
    sink = io.BytesIO()
    write_adapter(
        sink, records_of(tensors), tensors.items(), adapter_version=adapter, model_version=model
    )
    return sink.getvalue()


def seen_by_engine(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> element type, shape and bytes; numpy has no bfloat16, so bytes come by address."""
    onnxruntime.LoraAdapter().Load(str(path))
    opened = onnxruntime.AdapterFormat.read_adapter(str(path))
    found = {}
    for name, value in opened.get_parameters().items():
        element, shape = value.element_type(), tuple(value.shape())
        size = math.prod(shape) * helper.tensor_dtype_to_np_dtype(element).itemsize
        content = ctypes.string_at(value.data_ptr(), size) if size else b""
        found[name] = (TensorProto.DataType.Name(element).lower(), shape, content)
    return found


def expected_of(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (v.dtype.name.replace("float32", "float"), v.shape, v.tobytes())
        for name, v in tensors.items()
    }


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Every bit pattern may occur."""
    kind = np.dtype(DTYPES[dtype])
    data = np.random.default_rng(seed).bytes(math.prod(shape) * kind.itemsize)
    return np.frombuffer(data, kind).reshape(shape)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (4, 0), (2, 1, 3, 3), (0,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_reads_every_dtype_bit_for_bit(
    dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {"before": random((3,), "uint8", 1), "x": random(shape, dtype)}
    path = write(tensors, tmp_path / "a.onnx_adapter")
    assert seen_by_engine(path) == expected_of(tensors)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_the_engine_reads_any_number_of_tensors(count: int, tmp_path: Path) -> None:
    names = list(DTYPES)
    tensors = {
        f"model.layers.{i}.lora": random((i % 4, 1 + i % 3), names[i % len(names)], i)
        for i in range(count)
    }
    path = write(tensors, tmp_path / "a.onnx_adapter")
    assert seen_by_engine(path) == expected_of(tensors)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
TENSORS = st.dictionaries(
    NAMES,
    st.builds(
        random,
        st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
        st.sampled_from(sorted(DTYPES)),
        st.integers(0, 2**32 - 1),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(tensors=TENSORS, adapter=st.integers(0, 2**31 - 1), model=st.integers(0, 2**31 - 1))
def test_the_engine_reads_what_was_written(
    tensors: Tensors, adapter: int, model: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.onnx_adapter"
    write(tensors, path, adapter=adapter, model=model)
    opened = onnxruntime.AdapterFormat.read_adapter(str(path))
    versions = (opened.get_format_version(), opened.get_adapter_version())
    assert (*versions, opened.get_model_version()) == (1, adapter, model)
    assert seen_by_engine(path) == expected_of(tensors)


def test_the_engine_runs_with_the_file_as_with_the_same_feeds(tmp_path: Path) -> None:
    A = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    B = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    x = np.ones((1, 6), np.float32)
    session = onnxruntime.InferenceSession(low_rank(), providers=["CPUExecutionProvider"])
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(write({"A": A, "B": B}, tmp_path / "Ä b.onnx_adapter")))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    [through_file] = session.run(None, {"x": x}, options)
    [through_feeds] = session.run(None, {"x": x, "A": A, "B": B})
    assert through_file.tobytes() == through_feeds.tobytes()
    assert not session.run(None, {"x": x})[0].any()
    assert through_file.any()


def low_rank() -> bytes:
    """y = x A B, with a symbolic rank whose default is 0."""
    sizes: dict[str, tuple[Any, ...]] = {"x": (1, 6), "A": (6, "rank"), "B": ("rank", 5)}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in sizes.items()
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["a"]),
            helper.make_node("MatMul", ["a", "B"], ["y"]),
        ],
        "low_rank",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        [
            helper.make_tensor("A", TensorProto.FLOAT, (6, 0), b"", raw=True),
            helper.make_tensor("B", TensorProto.FLOAT, (0, 5), b"", raw=True),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_the_layout_is_pinned() -> None:
    tensors: Tensors = {"w": np.array([[1, -2, 3]], np.int8)}
    expected = b"".join(
        [
            struct.pack("<I", 20) + b"TORT",
            struct.pack("<6H", 12, 20, 4, 8, 12, 16),  # at 8: one vtable for both kinds of tables
            struct.pack("<4iI", 12, 1, 7, 9, 4),  # at 20: the root
            struct.pack("<II", 1, 4),  # at 40: one parameter, 4 bytes on
            struct.pack("<iIIiI", 48 - 8, 68 - 52, 76 - 56, 3, 100 - 64),  # at 48
            struct.pack("<I", 1) + b"w\0\0\0",  # at 68
            struct.pack("<Iqq", 2, 1, 3),  # at 76, so that the sizes are at 80
            struct.pack("<I", 0),  # at 96
            struct.pack("<I", 3) + b"\x01\xfe\x03\0",  # at 100, so that the values are at 104
        ]
    )
    assert bytes_of(tensors, adapter=7, model=9) == expected


def test_every_tensor_begins_at_a_multiple_of_8() -> None:
    marks: Tensors = {
        "n" * i: np.full(i, 0xA0 + i, np.uint8) for i in range(1, 12)
    }  # of all lengths
    content = bytes_of(marks)
    for values in marks.values():
        assert content.index(values.tobytes()) % 8 == 0


def test_the_same_tensors_give_the_same_bytes() -> None:
    tensors = {"a": random((4, 4), "float16"), "b": random((0, 3), "int8")}
    assert bytes_of(tensors) == bytes_of(dict(tensors))


def test_values_may_lie_in_memory_in_any_order(tmp_path: Path) -> None:
    wide = random((6, 8), "int16")
    tensors = {"t": wide.T, "s": wide[::2, ::-3], "b": wide[:0]}
    assert seen_by_engine(write(tensors, tmp_path / "a.onnx_adapter")) == expected_of(tensors)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([("b", np.zeros((2, 3), np.int8))], "'b' int8"),
        ([("a", np.zeros((3, 2), np.int8))], r"\[3, 2\]"),
        ([("a", np.zeros((2, 3), np.uint8))], "uint8"),
        ([("a", np.zeros((2, 3), np.float32))], "float32"),
        ([], "did not get"),
        ([("a", np.zeros((2, 3), np.int8)), ("c", np.zeros(1, np.int8))], "a tensor more"),
    ],
)
def test_a_tensor_that_was_not_announced_is_a_defect(values: Any, got: str) -> None:
    announced = [TensorRecord("a", (2, 3), "int8")]
    with pytest.raises(PackDefectError, match=got) as caught:
        write_adapter(io.BytesIO(), announced, values, adapter_version=1, model_version=1)
    assert caught.value.where.tensor in ("a", "c")


def test_values_of_the_other_byte_order_are_a_defect() -> None:
    announced = [TensorRecord("a", (2,), "float32")]
    values = [("a", np.zeros(2, ">f4"))]
    with pytest.raises(PackDefectError, match=">f4"):
        write_adapter(io.BytesIO(), announced, values, adapter_version=1, model_version=1)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([TensorRecord("a", (1,), "int4")], "cannot hold int4, expected one of float32"),
        ([TensorRecord("a", (1,), "bool")], "cannot hold bool"),
        ([TensorRecord("a", (), "float32")], "without axes"),
        ([TensorRecord("a", (1,), "int8"), TensorRecord("a", (2,), "int8")], "twice"),
    ],
)
def test_what_the_engine_would_refuse_is_a_defect(
    records: list[TensorRecord], message: str
) -> None:
    sink = io.BytesIO()
    with pytest.raises(PackDefectError, match=message):
        write_adapter(sink, records, (), adapter_version=1, model_version=1)
    assert not sink.getvalue()


@pytest.mark.parametrize("versions", [(-1, 0), (0, -1), (2**31, 0), (0, 2**31)])
def test_versions_are_numbers_of_31_bits(versions: tuple[int, int]) -> None:
    with pytest.raises(PackDefectError, match="expected 0 to 2147483647"):
        write_adapter(io.BytesIO(), (), (), adapter_version=versions[0], model_version=versions[1])


def test_a_file_beyond_the_format_is_refused_before_anything_is_written() -> None:
    records = [TensorRecord("small", (8,), "int8"), TensorRecord("large", (2**15, 2**15), "int16")]
    sink = io.BytesIO()
    with pytest.raises(PackError, match=r"largest tensor's; .* holds at most") as caught:
        write_adapter(sink, records, (), adapter_version=1, model_version=1)
    assert not isinstance(caught.value, PackDefectError)
    assert caught.value.where.tensor == "large"
    assert caught.value.hint is not None
    assert "--lora-weights int8" in caught.value.hint
    assert not sink.getvalue()


class _Nowhere:
    """Counts bytes and keeps none."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self.size += len(data)
        return len(data)


def test_one_tensor_is_in_memory_at_a_time() -> None:
    """100 tensors of 1 MiB: at most two are held, the one written and the next being made."""
    shape = (1 << 20,)
    records = [TensorRecord(f"w{i}", shape, "int8") for i in range(100)]

    def made() -> Iterator[tuple[str, NDArray[Any]]]:
        for record in records:
            yield record.name, np.ones(shape, np.int8)

    sink = _Nowhere()
    peak = peak_of(lambda: write_adapter(sink, records, made(), adapter_version=1, model_version=1))
    assert sink.size > 100 << 20
    assert peak < 3 << 20


def peak_of(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
