from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    TensorSource,
    read_number,
    reordered,
    reshaped,
    same,
    transposed,
)
from lora_quant.errors import AdapterError, UnsupportedAdapterError

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def source(tmp_path: Path, **tensors: Any) -> TensorSource:
    path = tmp_path / "x.safetensors"
    save_file(tensors or {"a": A, "b": A.astype(np.float16)}, path, {"format": "pt"})
    return SafetensorsFile(path)


def test_a_view_has_other_names_axes_and_orders(tmp_path: Path) -> None:
    file = source(tmp_path)
    view = RenamedTensors(
        file,
        {
            "same": same(file, "b"),
            "turned": transposed(file, "a"),
            "flat": reshaped(file, "a", (1, 6)),
            "rows": reordered(file, "a", np.array([1, 0])),
            "sum": Derived(("a", "b"), (2, 3), "F32", lambda a, b: a + b),
        },
    )
    expected = {"same": A, "turned": A.T, "flat": A.reshape(1, 6), "rows": A[::-1], "sum": 2 * A}
    assert view.names == tuple(expected)
    assert view.path == file.path
    assert view.metadata == {"format": "pt"}
    assert view.originals("sum") == ("a", "b")
    for name, values in expected.items():
        read = view.read(name)
        assert view.info(name).shape == values.shape == read.shape
        assert view.info(name).dtype == ("F16" if name == "same" else "F32")
        assert read.tolist() == values.tolist()
        assert read.flags.c_contiguous


def test_whole_numbers_pass_through_a_view(tmp_path: Path) -> None:
    places = np.arange(6).reshape(2, 3)
    file = source(tmp_path, places=places)
    view = RenamedTensors(file, {"turned": transposed(file, "places")})
    assert view.read_numbers("turned").tolist() == places.T.tolist()
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I64"):
        view.read("turned")


def test_an_error_names_the_tensor_as_the_file_does(tmp_path: Path) -> None:
    file = source(tmp_path, a=A, i=np.arange(3))
    view = RenamedTensors(file, {"x.lora_A.weight": same(file, "i")})
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I64") as caught:
        view.read("x.lora_A.weight")
    assert caught.value.where.tensor == "i"
    assert caught.value.where.file == file.path
    with pytest.raises(AdapterError, match="the file has no such tensor") as missing:
        view.info("x.lora_B.weight")
    assert missing.value.hint == "did you mean 'x.lora_A.weight'?"
    with pytest.raises(AdapterError, match="the file has no such tensor"):
        same(file, "b")


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = source(tmp_path, a=A, v=np.zeros(3, np.float32))
    with pytest.raises(UnsupportedAdapterError, match=r"shape \[3\], expected two axes"):
        transposed(file, "v")
    with pytest.raises(AdapterError, match=r"shape \[2, 3\], expected \[5\]"):
        reshaped(file, "a", (5,))


def test_values_that_are_not_finite_pass_without_a_warning(tmp_path: Path) -> None:
    file = source(tmp_path, a=np.array([np.inf, np.nan], np.float32))
    view = RenamedTensors(file, {"x": Derived(("a",), (2,), "F32", lambda a: a * np.float32(0))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(view.read("x")).all()


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_number_may_be_of_any_plain_type(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    file = source(tmp_path, n=np.ones(shape, dtype))
    assert read_number(file, "n") == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (A, r"shape \[2, 3\], expected a single number"),
        (np.zeros((0,), np.float32), r"shape \[0\], expected a single number"),
        (np.asarray(np.nan, np.float32), "holds nan, expected a finite number"),
        (np.asarray(np.inf, np.float16), "holds inf, expected a finite number"),
        (np.asarray(1, np.complex64), "the tensor is C64, expected a whole number or a float"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        read_number(source(tmp_path, n=value), "n")
    assert caught.value.where.tensor == "n"
