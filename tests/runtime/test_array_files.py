"""Writing arrays by name: any names, any dtypes, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.errors import PackError
from lora_quant.runtime.session.array_files import write_arrays

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
DTYPES = st.sampled_from(["float32", "float16", "float64", "int64", "uint16", "int8", "bool"])
VALUES = DTYPES.flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


@settings(max_examples=60)
@given(values=st.dictionaries(NAMES, VALUES, max_size=4))
def test_what_is_written_is_read(
    values: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    write_arrays(folder / "y.npz", values)
    with np.load(folder / "y.npz") as archive:
        assert_equal(dict(archive), values)
    write_arrays(folder / "y.safetensors", values)
    assert_equal(load_file(folder / "y.safetensors"), values)


def assert_equal(got: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        assert got[name].shape == value.shape
        assert np.array_equal(got[name], value, equal_nan=value.dtype.kind == "f")


@pytest.mark.parametrize("name", ["file", "allow_pickle", "/a/b", "../up", "a=b", "x.npy"])
def test_names_that_numpy_would_take_for_something_else_are_kept(name: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "y.npz", {name: np.arange(3)})
    with np.load(tmp_path / "y.npz") as archive:
        assert archive.files == [name]
        assert archive[name].tolist() == [0, 1, 2]


def test_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="the output 'words' is <U1, expected numbers"):
        write_arrays(tmp_path / "y.npz", {"words": np.array(["a"])})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    (tmp_path / "y.npz").write_bytes(b"old")
    with pytest.raises(PackError, match="No space left on device"):
        write_arrays(tmp_path / "y.npz", {"y": np.zeros(3)}, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]
    assert (tmp_path / "y.npz").read_bytes() == b"old"
