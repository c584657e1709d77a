"""Ranges of stored tensors, in every form that ONNX has for them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.stored_values import stored_values

TYPES: dict[Any, int] = {
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
    ml_dtypes.bfloat16: TensorProto.BFLOAT16,
    np.float64: TensorProto.DOUBLE,
    np.int64: TensorProto.INT64,
    np.int32: TensorProto.INT32,
    np.int8: TensorProto.INT8,
    np.uint16: TensorProto.UINT16,
}
FORMS = ("raw", "typed", "external")


def stored(values: Any, form: str, folder: Path, before: int = 0) -> TensorProto:
    """A tensor of `values`; `before` bytes of something else precede them in a data file."""
    if form == "typed":
        element = TYPES[values.dtype.type]
        return helper.make_tensor("w", element, values.shape, values.flatten().tolist())
    tensor = numpy_helper.from_array(values, "w")
    if form == "external":
        (folder / "w.data").write_bytes(bytes(before) + tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, "w.data", before, values.nbytes)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    return tensor


def model_in(folder: Path) -> ModelFile:
    return ModelFile(folder / "model.onnx", onnx.ModelProto(), ())


def read(tensor: TensorProto, folder: Path, start: int, count: int) -> Any:
    with stored_values(model_in(folder), tensor, Where(tensor="w")) as values:
        return values(start, count)


@given(
    dtype=st.sampled_from(list(TYPES)),
    form=st.sampled_from(FORMS),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    before=st.integers(0, 9),
    data=st.data(),
)
def test_ranges_are_those_of_the_whole_tensor(
    dtype: Any, form: str, shape: list[int], before: int, data: st.DataObject
) -> None:
    size = math.prod(shape)
    values = np.random.default_rng(size).integers(0, 100, shape).astype(dtype)
    start = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(1, size - start))
    with TemporaryDirectory() as name:
        folder = Path(name)
        tensor = stored(values, form, folder, before)
        got = read(tensor, folder, start, count)
        expected = numpy_helper.to_array(tensor, str(folder)).reshape(-1)
    assert got.dtype == dtype
    assert np.array_equal(got, expected[start : start + count])


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_a_tensor_with_too_few_values(tmp_path: Path, form: str) -> None:
    tensor = stored(np.ones((2, 3), np.float32), form, tmp_path)
    tensor.dims[0] = 4
    with pytest.raises(GraphError, match=re.escape("holds 6 values, expected 12 for its shape")):
        read(tensor, tmp_path, 0, 6)


def test_a_data_file_that_became_shorter(tmp_path: Path) -> None:
    tensor = stored(np.ones((2, 3), np.float32), "external", tmp_path)
    (tmp_path / "w.data").write_bytes(bytes(20))
    with pytest.raises(InputMissingError, match="ended 4 bytes too early") as caught:
        read(tensor, tmp_path, 0, 6)
    assert "w.data" in str(caught.value)


def test_a_data_file_that_is_gone(tmp_path: Path) -> None:
    tensor = stored(np.ones((2, 3), np.float32), "external", tmp_path)
    (tmp_path / "w.data").unlink()
    with pytest.raises(InputMissingError, match="data file cannot be read: No such file"):
        read(tensor, tmp_path, 0, 6)


def test_a_type_of_eight_bit_floats(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT8E4M3FN, dims=[1], raw_data=b"\x11")
    with pytest.raises(GraphError, match="values of type float8e4m3fn cannot be read"):
        read(tensor, tmp_path, 0, 1)


@pytest.mark.parametrize("start", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("is_raw", [True, False])
def test_integers_of_four_bits_from_any_place(
    tmp_path: Path, start: int, kind: int, is_raw: bool
) -> None:
    codes = [-8, 7, -1, 0, 3, -5, 1] if kind == TensorProto.INT4 else [0, 15, 8, 7, 1, 9, 2]
    tensor = helper.make_tensor("w", kind, [7], codes)
    if is_raw:
        packed = bytes(tensor.int32_data) or tensor.raw_data
        tensor.ClearField("int32_data")
        tensor.raw_data = packed
    found = read(tensor, tmp_path, start, 7 - start)
    assert found.dtype == (np.int8 if kind == TensorProto.INT4 else np.uint8)
    assert found.tolist() == codes[start:]


def test_too_few_bytes_of_four_bit_integers(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[5], raw_data=b"\x11\x22")
    with pytest.raises(GraphError, match="holds 2 values, expected 3 for its shape"):
        read(tensor, tmp_path, 0, 5)
