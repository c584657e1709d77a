"""The reader of adapter files: it agrees with the engine, and refuses what is not sound."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.errors import AdapterError, InputMissingError
from lora_quant.findings import Severity
from lora_quant.graph.records import TensorRecord
from lora_quant.targets.files.onnx_adapter_writer import write_adapter
from lora_quant.validation.files.adapter_check import check_adapter
from lora_quant.validation.files.adapter_file import MOST_PARAMETERS, read_adapter_file
from lora_quant.validation.kinds import Kind
from lora_quant.validation.validate import validate_paths
from tests.validation.packs import rules

Tensors = dict[str, NDArray[Any]]


def written(tensors: Tensors, *, model: int = 9) -> bytearray:
    """By our writer, whose layout its own tests pin."""
    records = [TensorRecord(name, v.shape, v.dtype.name) for name, v in tensors.items()]
    sink = io.BytesIO()
    write_adapter(sink, records, tensors.items(), adapter_version=7, model_version=model)
    return bytearray(sink.getvalue())


def exported(tensors: Tensors, path: Path) -> Path:
    """By the engine."""
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v))
        for name, v in tensors.items()
    }
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(7)
    adapter.set_model_version(9)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))
    return path


def put(content: bytes | bytearray, path: Path) -> Path:
    path.write_bytes(content)
    return path


def read_back(path: Path) -> Tensors:
    adapter = read_adapter_file(path)
    assert (adapter.adapter_version, adapter.model_version) == (7, 9)
    return {
        p.name: np.concatenate([*adapter.chunks(p), np.zeros(0, p.numpy_dtype)]).reshape(p.shape)
        for p in adapter.parameters
    }


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == v.dtype
        and found[name].shape == v.shape
        and found[name].tobytes() == v.tobytes()
        for name, v in expected.items()
    )


DTYPES = ["float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64"]
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=4)
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.builds(
        lambda shape, dtype, seed: np.random.default_rng(seed).integers(0, 99, shape).astype(dtype),
        SHAPES,
        st.sampled_from(DTYPES),
        st.integers(0, 99),
    ),
    max_size=9,
)


@settings(max_examples=60)
@given(tensors=TENSORS)
def test_what_the_engine_writes_is_read(
    tensors: Tensors, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = exported(tensors, tmp_path_factory.mktemp("a") / "a.onnx_adapter")
    assert same(read_back(path), tensors)


def test_values_come_in_chunks(tmp_path: Path) -> None:
    """3 MiB in pieces of 1 MiB, and what is held is little more than one of them."""
    values = np.arange(3 << 18, dtype=np.float32)
    path = put(written({"w": values}), tmp_path / "a")
    tracemalloc.start()
    adapter = read_adapter_file(path)
    sizes = [chunk.nbytes for chunk in adapter.chunks(adapter.parameters[0])]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [1 << 20] * 3
    assert peak < 3 << 20
    assert same(read_back(path), {"w": values})


SMALL: Tensors = {"w": np.array([[1, -2, 3]], np.int8)}
"""At 20 lies the root, at 40 the list, at 48 the table, at 68 the name, at 76 the shape, at 100 the
values; the vtable is at 8. See the test of the writer's layout."""


def patch(offset: int, layout: str, *values: int) -> bytes:
    content = written(SMALL)
    struct.pack_into(f"<{layout}", content, offset, *values)
    return bytes(content)


def test_the_offsets_of_these_tests_are_right(tmp_path: Path) -> None:
    assert patch(96, "I", 0) == bytes(written(SMALL))
    assert same(read_back(put(patch(104, "3b", 7, 7, 7), tmp_path / "a")),
                {"w": np.array([[7, 7, 7]], np.int8)})  # fmt: skip


def built(fields: Callable[[flatbuffers.Builder], list[tuple[str, int, int]]]) -> bytes:
    """A file with one parameter of given fields: (kind, number of the field, value)."""
    builder = flatbuffers.Builder(64)
    made = fields(builder)
    builder.StartObject(4)
    for kind, number, value in made:
        if kind == "int32":
            builder.PrependInt32Slot(number, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    parameter = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(parameter)
    parameters = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(3, parameters, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TORT")
    return bytes(builder.Output())


def int64s(builder: flatbuffers.Builder, values: list[int]) -> int:
    builder.StartVector(8, len(values), 8)
    for value in reversed(values):
        builder.PrependInt64(value)
    return int(builder.EndVector())


ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "header alone": (b"\x0c\0\0\0TORT", r"the root lies at \[12, 16\)"),
    "text": (b'{"peft_type": "LORA"}', "it begins with b'ft_t', expected b'TORT'"),
    "another identifier": (patch(4, "4s", b"ORTM"), "it begins with b'ORTM'"),  # type: ignore[arg-type]
    "another format version": (patch(24, "i", 2), "version 2, expected 1"),
    "root before the file": (patch(0, "I", 4), r"the root lies at \[4, 8\)"),
    "root beyond the file": (patch(0, "I", 2**32 - 4), "the root lies at"),
    "root that is not aligned": (patch(0, "I", 22), "the root lies at 22, expected a multiple"),
    "vtable beyond the file": (patch(20, "i", -4000), "the vtable of the root lies at"),
    "vtable before the file": (patch(20, "i", 4000), "the vtable of the root lies at"),
    "vtable that is too long": (patch(8, "H", 60000), "the vtable of the root lies at"),
    "vtable that is too short": (patch(8, "H", 2), "the vtable of the root has sizes of 2, 20"),
    "vtable of odd size": (patch(8, "H", 11), "the vtable of the root has sizes of 11, 20"),
    "table beyond the file": (patch(10, "H", 60000), r"the root lies at \[20, 60020\)"),
    "field beyond its table": (patch(18, "H", 18), "a field of the root lies outside"),
    "field on the table's head": (patch(12, "H", 2), "a field of the root lies outside"),
    "list beyond the file": (patch(36, "I", 2**31), "the list of parameters lies at"),
    "list with too many entries": (patch(40, "I", 2**31), "has 2,147,483,648 entries"),
    "list that leaves the file": (patch(40, "I", 1000), r"the list of parameters lies at \[44, "),
    "list with a table twice": (patch(40, "I", 2), "parameter"),
    "parameter beyond the file": (patch(44, "I", 2**30), "parameter 0 lies at"),
    "parameter that is the root": (patch(44, "I", 2**32 - 24), "parameter 0 lies at"),
    "name beyond the file": (patch(52, "I", 4000), "the name of parameter 0 lies at"),
    "name that is too long": (patch(68, "I", 2**31), "the name of parameter 0 has 2,147,483,648"),
    "name that leaves the file": (patch(68, "I", 1000), "the name of parameter 0 lies at"),
    "name without an end": (patch(73, "B", 65), "does not end with a zero byte"),
    "name that is empty": (patch(68, "I", 0), "does not end with a zero byte"),
    "name that is no text": (patch(72, "B", 0xFF), "is not UTF-8 text"),
    "shape beyond the file": (patch(56, "I", 2**31), "the shape of 'w' lies at"),
    "shape that is not aligned": (patch(56, "I", 24), "the shape of 'w' lies at"),
    "shape with too many axes": (patch(76, "I", 33), "has 33 entries, expected at most 32"),
    "shape that leaves the file": (patch(76, "I", 20), "the shape of 'w' lies at"),
    "negative sizes": (patch(80, "qq", -1, -3), r"\[-1, -3\] does not take the 3 bytes"),
    "sizes that overflow": (patch(80, "qq", 2**62, 4), "does not take the 3 bytes"),
    "sizes of another number": (patch(80, "qq", 2, 3), r"\[2, 3\] does not take the 3 bytes"),
    "dtype that is wider": (patch(60, "i", 1), "float32 .* does not take the 3 bytes"),
    "dtype bool": (patch(60, "i", 9), "the dtype has the number 9"),
    "dtype text": (patch(60, "i", 8), "the dtype has the number 8"),
    "dtype that is none": (patch(60, "i", -5), "the dtype has the number -5"),
    "values beyond the file": (patch(64, "I", 2**31), "the values of 'w' lies at"),
    "values that leave the file": (patch(100, "I", 9), "the values of 'w' lies at"),
    "values that are the shape": (patch(64, "I", 12), "does not take|share bytes"),
    "values that are longer": (patch(100, "I", 4), "does not take the 4 bytes"),
    "parameter without a name": (
        built(lambda b: [("offset", 3, b.CreateByteVector(b"")), ("int32", 2, 3)]),
        "parameter 0 has no name",
    ),
    "parameter without values": (
        built(lambda b: [("offset", 0, b.CreateString("w")), ("int32", 2, 3)]),
        "it has no values",
    ),
    "parameter without a dtype": (
        built(
            lambda b: [
                ("offset", 0, b.CreateString("w")),
                ("offset", 3, b.CreateByteVector(b"abc")),
                ("offset", 1, int64s(b, [3])),
            ]
        ),
        "the dtype has the number 0",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    content, message = ATTACKS[name]
    path = put(content, tmp_path / "a.onnx_adapter")
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter_file(path)
    assert caught.value.where.file == path
    assert caught.value.hint is not None
    assert rules(check_adapter(path)) == ["adapter/invalid"]


def test_two_parameters_may_not_share_values(tmp_path: Path) -> None:
    content = written({"a": np.ones(8, np.int8), "b": np.ones(8, np.int8)})
    first, second = (read_adapter_file(put(content, tmp_path / "a")).parameters[i].start
                     for i in (0, 1))  # fmt: skip
    at = 72 + 16  # the field of the second table
    (offset,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, offset - (second - first))
    with pytest.raises(AdapterError, match="the values of 'a' and the values of 'b' share bytes"):
        read_adapter_file(put(content, tmp_path / "a"))


def test_a_list_of_one_table_again_and_again_costs_little(tmp_path: Path) -> None:
    """As many entries as are allowed, all of one parameter with a long name: a file of 404 KB.

    What is held for the names that were read is bounded by the size of the file.
    """
    content = written({"n" * 4000: np.zeros(1, np.int8)})
    start = len(content)
    content += struct.pack("<I", MOST_PARAMETERS)
    for index in range(MOST_PARAMETERS):
        content += struct.pack("<I", (48 - (start + 4 + 4 * index)) % 2**32)
    struct.pack_into("<I", content, 36, start - 36)
    path = put(content, tmp_path / "a")
    tracemalloc.start()
    with pytest.raises(AdapterError):
        read_adapter_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(content)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = bytes(written({"a": np.ones((2, 3), np.float16), "bb": np.ones((0, 3), np.int8),
                             "c": np.ones(4, np.int8)}))  # fmt: skip
    for size in range(len(content)):
        with pytest.raises(AdapterError):
            read_adapter_file(put(content[:size], tmp_path / "a"))


@settings(max_examples=400)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    word=st.booleans(),
)
def test_no_change_of_bytes_makes_it_fail_otherwise(
    changes: list[tuple[int, int]], word: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Either it is refused, or every parameter has as many values as its shape tells."""
    content = written({"a": np.ones((2, 3), np.float32), "b": np.ones((0, 3), np.int8),
                       "c": np.ones(4, np.int64)})  # fmt: skip
    for position, value in changes:
        at = position % len(content)
        for place in range(at, min(at + (4 if word else 1), len(content))):
            content[place] = value
    path = put(content, tmp_path_factory.getbasetemp() / "changed.onnx_adapter")
    assert all(f.rule.startswith("adapter/") for f in check_adapter(path))
    try:
        adapter = read_adapter_file(path)
    except AdapterError:
        return
    for parameter in adapter.parameters:
        count = sum(chunk.size for chunk in adapter.chunks(parameter))
        assert count == int(np.prod(parameter.shape))


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="does not exist"):
        read_adapter_file(tmp_path / "none.onnx_adapter")
    with pytest.raises(InputMissingError, match="cannot be read"):
        read_adapter_file(tmp_path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = put(written(SMALL), tmp_path / "a.onnx_adapter")
    adapter = read_adapter_file(path)
    put(path.read_bytes()[:105], path)
    with pytest.raises(AdapterError, match="ends in the middle of values"):
        list(adapter.chunks(adapter.parameters[0]))
    path.unlink()
    with pytest.raises(InputMissingError, match="does not exist"):
        list(adapter.chunks(adapter.parameters[0]))


def test_a_sound_file_is_told_of(tmp_path: Path) -> None:
    tensors: Tensors = {f"w{i}": np.ones((2, i), np.float32) for i in range(10)}
    path = put(written(tensors), tmp_path / "a.onnx_adapter")
    [item] = validate_paths([path]).checked
    assert (item.kind, item.problems) == (Kind.ADAPTER_FILE, 0)
    assert not item.findings
    [note] = item.contents
    assert (note.rule, note.severity) == ("adapter/content", Severity.NOTE)
    assert note.message.startswith(
        "10 tensors with 360 bytes of values, adapter version 7, model version 9: "
        "'w0' float32 [2, 0]; 'w1' float32 [2, 1]; "
    )
    assert note.message.endswith("; and 2 more")


def test_it_is_known_by_its_content_and_found_in_folders(tmp_path: Path) -> None:
    put(written(SMALL), tmp_path / "renamed.bin")
    assert validate_paths([tmp_path / "renamed.bin"]).checked[0].kind is Kind.ADAPTER_FILE
    put(written(SMALL), tmp_path / "it.onnx_adapter")
    [item] = validate_paths([tmp_path]).checked
    assert item.path == tmp_path / "it.onnx_adapter"


def test_what_the_engine_takes_or_refuses_without_a_word_is_an_error(tmp_path: Path) -> None:
    content = written({"aa": np.array([1, np.nan, np.inf], np.float16), "bb": np.ones(1, np.int8)})
    content = bytearray(bytes(content).replace(b"bb\0", b"aa\0"))
    findings = check_adapter(put(content, tmp_path / "a.onnx_adapter"))
    assert rules(findings) == ["adapter/content", "adapter/twice", "adapter/values"]
    assert "holds the tensor 2 times" in findings[0].message
    assert "2 of the float16 values are NaN or Inf" in findings[1].message
    assert findings[1].where.tensor == "aa"
    scalar = built(
        lambda b: [
            ("offset", 0, b.CreateString("alpha")),
            ("offset", 3, b.CreateByteVector(b"\0\0\x80\x3f")),
            ("int32", 2, 1),
        ]
    )
    findings = check_adapter(put(scalar, tmp_path / "b.onnx_adapter"))
    assert rules(findings) == ["adapter/content", "adapter/no-axes"]
    with pytest.raises(Exception, match="dims"):
        onnxruntime.LoraAdapter().Load(str(tmp_path / "b.onnx_adapter"))
