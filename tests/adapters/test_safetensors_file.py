from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.arbitrary import ANY_FILE, float_arrays


@ANY_FILE
@given(tensors=st.dictionaries(st.text(max_size=20), float_arrays(), max_size=5))
def test_every_tensor_is_read_back_bit_for_bit(
    tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    tensors.pop("__metadata__", None)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    file = SafetensorsFile(path)
    assert set(file.names) == set(tensors)
    for name, array in tensors.items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_a_file_cut_at_any_byte_is_an_adapter_error(tmp_path: Path) -> None:
    whole = save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterError, match=r"expected|not JSON") as caught:
            SafetensorsFile(path)
        assert type(caught.value) is AdapterError
    path.write_bytes(whole)
    assert SafetensorsFile(path).names == ("a", "b")


@ANY_FILE
@given(data=st.data())
def test_a_damaged_file_is_read_or_an_adapter_error(data: st.DataObject, tmp_path: Path) -> None:
    whole = bytearray(save({"a.lora_A": np.ones((2, 3), np.float32)}, {"format": "pt"}))
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header - 1))
        piece = data.draw(st.binary(max_size=3))
        whole[at : at + data.draw(st.integers(0, 3))] = piece
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(whole)
    with contextlib.suppress(AdapterError):
        file = SafetensorsFile(path)
        for name in file.names:
            file.read(name)


def test_bfloat16_is_ml_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.array([1.5, -2.0], ml_dtypes.bfloat16)}, path)
    read = SafetensorsFile(path).read("a")
    assert read.dtype == ml_dtypes.bfloat16
    assert read.astype(np.float32).tolist() == [1.5, -2.0]


def test_integers_are_listed_but_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(2, np.int8)}, path)
    file = SafetensorsFile(path)
    assert file.info("a").dtype == "I8"
    with pytest.raises(
        UnsupportedAdapterError, match="the tensor is I8, expected one of F64, F32, F16, BF16"
    ) as caught:
        file.read("a")
    assert caught.value.where.tensor == "a"
    assert caught.value.hint is not None
    assert "float32" in caught.value.hint


def test_an_unknown_tensor_is_named_with_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"lora_A.weight": np.ones(2, np.float32)}, path)
    with pytest.raises(AdapterError, match="no such tensor") as caught:
        SafetensorsFile(path).read("lora_B.weight")
    assert caught.value.hint == "did you mean 'lora_A.weight'?"


def test_a_file_that_changes_between_header_and_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(2, np.float32)}, path)
    file = SafetensorsFile(path)
    save_file({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, path)
    with pytest.raises(AdapterError, match="the file was changed since its header was read"):
        file.read("a")


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="does not exist"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(InputMissingError, match="is not a regular file"):
        SafetensorsFile(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(InputMissingError, match="is not a regular file"):
        SafetensorsFile(pipe)


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    one = 256 * 1024
    save_file({f"t{i}": np.zeros(one // 4, np.float32) for i in range(32)}, path)
    tracemalloc.start()
    try:
        file = SafetensorsFile(path)
        for name in file.names:
            file.read(name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # two tensors can be alive while one name is rebound, and the header is a few kilobytes
    assert peak < 3 * one
