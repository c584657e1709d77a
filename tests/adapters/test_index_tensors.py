"""Whole numbers in a checkpoint: what was written is read, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.frame.index_tensors import index_shape, read_indices
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "i8"]


def written(folder: Path, array: Array) -> SafetensorsFile:
    # a tensor before it, so that it does not start where the data does
    save_file({"first": np.ones(3, np.float64), "places": array}, folder / "a.safetensors")
    return SafetensorsFile(folder / "a.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dtype=st.sampled_from(DTYPES), data=st.data())
def test_what_was_written_is_read(tmp_path: Path, dtype: str, data: st.DataObject) -> None:
    most = int(np.iinfo(dtype).max)
    # the largest number of all is the exclusive limit
    numbers = data.draw(st.lists(st.integers(0, min(most, 2**63 - 2)), min_size=2, max_size=8))
    array = np.array(numbers[: len(numbers) // 2 * 2], dtype).reshape(2, -1)
    source = written(tmp_path, array)
    assert index_shape(source, "places", "m") == array.shape
    found = read_indices(source, "places", "m")
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_that_hold_whole_numbers_are_read(tmp_path: Path, dtype: Any) -> None:
    array = np.array([0, 3, 128]).astype(dtype)
    np.testing.assert_array_equal(
        read_indices(written(tmp_path, array), "places", "m"), [0, 3, 128]
    )


@pytest.mark.parametrize(
    ("array", "below", "message"),
    [
        (np.array([0, -1, 2]), None, "1 of 3 indices .*, the first is -1; expected at least 0"),
        (np.array([0, 9, 8]), 8, "2 of 3 indices .*, the first is 9; expected 0 to 7"),
        (np.array([0.5, 1]), 8, "numbers that are not whole"),
        (np.array([np.nan, 1]), 8, "values are not finite"),
        (np.array([1e30, 1]), 8, "numbers that are not whole"),
    ],
)
def test_what_is_no_place_is_refused(
    tmp_path: Path, array: Array, below: int | None, message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        read_indices(written(tmp_path, array), "places", "m", below)
    assert caught.value.where.tensor == "places"
    assert caught.value.where.module == "m"


@pytest.mark.parametrize("dtype", [np.bool_, np.uint64, np.complex64])
def test_other_types_are_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match="expected whole numbers"):
        index_shape(written(tmp_path, np.zeros(2, dtype)), "places", "m")


def test_a_file_that_changes_before_its_indices_are_read_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path, np.array([1, 2]))
    written(tmp_path, np.array([1, 2, 3]))
    with pytest.raises(AdapterError, match="the file was changed since its header was read"):
        read_indices(source, "places", "m")
