"""Files with inputs are read as arrays by name, or refused before they unfold."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.errors import VerificationError
from lora_quant.runtime.feeds import input_files
from lora_quant.runtime.feeds.input_files import read_inputs


def npy(array: NDArray[Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def archive(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in entries:
            written.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(save: object, tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": np.arange(6).reshape(2, 3),
        "x": np.array([0.5], np.float16),
    }
    save(tmp_path / "x.npz", **arrays)  # type: ignore[operator]
    found = read_inputs(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_entry_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", [("input_ids", b"text")])
    with pytest.raises(VerificationError, match="the inputs cannot be read"):
        read_inputs(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    one = npy(np.ones(2, np.float32))
    path = archive(tmp_path / "x.npz", [("x.npy", one), ("x.npy", one)])
    with pytest.raises(VerificationError, match="holds the input 'x' twice"):
        read_inputs(path)


def test_an_archive_that_unfolds_to_more_than_its_bound_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "x.npz", [("x.npy", npy(np.zeros(1 << 18, np.float32)))])
    assert path.stat().st_size < 1 << 14
    monkeypatch.setattr(input_files, "MOST_BYTES", 1 << 20)
    with pytest.raises(VerificationError, match="expected at most 1,048,576"):
        read_inputs(path)


def test_a_shape_without_values_is_refused(tmp_path: Path) -> None:
    header = (
        npy(np.zeros(3, np.float32)).replace(b"(3,), }", b"(9999999,), }").replace(b"   \n", b"\n")
    )
    with pytest.raises(VerificationError, match="the inputs cannot be read"):
        read_inputs(archive(tmp_path / "x.npz", [("x.npy", header)]))
