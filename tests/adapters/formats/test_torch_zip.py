from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.files.checkpoint import open_checkpoint
from lora_quant.adapters.formats.torch_zip import TorchZipFile
from lora_quant.adapters.frame.index_tensors import read_indices
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.arbitrary import ANY_FILE, damaged, float_arrays
from tests.adapters.builders import Q0, pair, write
from tests.adapters.formats import torch_bytes
from tests.adapters.formats.torch_bytes import PROTO, STOP, pickled, state_dict, tensor, text


@ANY_FILE
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8")), float_arrays(max_dims=3), max_size=4
    )
)
def test_every_tensor_is_read_back_bit_for_bit(
    arrays: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    file = TorchZipFile(torch_bytes.write(tmp_path / "x.bin", arrays))
    assert file.names == tuple(arrays)
    for name, array in arrays.items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert file.info(name).shape == array.shape
        assert read.tobytes() == array.tobytes()


def test_a_view_of_a_storage_is_read_by_its_strides(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32)
    entries = {
        "columns": tensor("FloatStorage", "0", 24, 0, (6, 4), (1, 6)),
        "inner": tensor("FloatStorage", "0", 24, 8, (2, 2), (6, 2)),
        "none": tensor("FloatStorage", "0", 24, 0, (0, 4), (4, 1)),
    }
    path = torch_bytes.write_zip(tmp_path / "x.bin", state_dict(entries), {"0": values.tobytes()})
    file = TorchZipFile(path)
    assert file.read("columns").tolist() == values.reshape(4, 6).T.tolist()
    assert file.read("inner").tolist() == [[8, 10], [14, 16]]
    assert file.read("none").shape == (0, 4)
    assert file.read("columns").flags.c_contiguous


def test_whole_numbers_are_read_by_their_strides_too(tmp_path: Path) -> None:
    """As of a transposed tensor of indices, which torch saves as it lies in memory."""
    values = np.arange(6, dtype=np.int64)
    entries = {"places": tensor("LongStorage", "0", 6, 0, (2, 3), (1, 2))}
    path = torch_bytes.write_zip(tmp_path / "x.bin", state_dict(entries), {"0": values.tobytes()})
    file = TorchZipFile(path)
    assert file.read_numbers("places").tolist() == [[0, 2, 4], [1, 3, 5]]
    assert read_indices(file, "places", "m").tolist() == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I64, expected one of F64"):
        file.read("places")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_peft_folder_may_hold_its_weights_so(tmp_path: Path, suffix: str) -> None:
    tensors = pair(Q0)
    write(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").unlink()
    torch_bytes.write(tmp_path / f"adapter_model{suffix}", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "peft"
    assert checkpoint.config.fields["r"] == 4
    for name, array in tensors.items():
        assert np.array_equal(checkpoint.tensors.read(name), array)


def test_integers_are_listed_but_not_read(tmp_path: Path) -> None:
    file = TorchZipFile(torch_bytes.write(tmp_path / "x.bin", {"a": np.arange(3)}))
    assert file.info("a").dtype == "I64"
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I64, expected one of F64"):
        file.read("a")


@pytest.mark.parametrize(
    "described",
    [
        tensor("FloatStorage", "0", 6, 1, (2, 3), (3, 1)),
        tensor("FloatStorage", "0", 6, 0, (2, 4), (4, 1)),
        tensor("FloatStorage", "0", 6, 0, (2, 3), (4, 1)),
        tensor("FloatStorage", "0", 6, 2**62, (2, 3), (3, 1)),
        tensor("FloatStorage", "0", 6, 0, (2**40, 2**40), (0, 0)),
        tensor("FloatStorage", "0", 6, 0, (6, 2), (1, 0)),
        tensor("FloatStorage", "0", 2**40, 0, (2**20, 2**20), (2**20, 1)),
        tensor("DoubleStorage", "0", 6, 0, (2, 3), (3, 1)),
        tensor("HalfStorage", "0", 6, 0, (2, 3), (3, 1)),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    tmp_path: Path, described: bytes
) -> None:
    pickle = state_dict({"a": described})
    path = torch_bytes.write_zip(tmp_path / "x.bin", pickle, {"0": bytes(24)})
    with pytest.raises(AdapterError, match="does not fit its storage of") as caught:
        TorchZipFile(path)
    assert caught.value.where.tensor == "a"


@pytest.mark.parametrize(
    "described",
    [
        tensor("FloatStorage", "0", 6, -1, (2, 3), (3, 1)),
        tensor("FloatStorage", "0", 6, 5, (2, 3), (-3, 1)),
        tensor("FloatStorage", "0", 6, 0, (-2, -3), (3, 1)),
        tensor("FloatStorage", "0", 6, 0, (2, 3), (3,)),
    ],
)
def test_sizes_below_zero_and_missing_strides_are_refused(tmp_path: Path, described: bytes) -> None:
    pickle = state_dict({"a": described})
    path = torch_bytes.write_zip(tmp_path / "x.bin", pickle, {"0": bytes(24)})
    with pytest.raises(AdapterError, match="as many strides as axes and nothing below 0"):
        TorchZipFile(path)


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    pickle = state_dict({"a": tensor("FloatStorage", "../../etc/passwd", 6, 0, (6,), (1,))})
    path = torch_bytes.write_zip(tmp_path / "x.bin", pickle, {})
    with pytest.raises(AdapterError, match=r"no entry 'archive/data/\.\./\.\./etc/passwd'"):
        TorchZipFile(path)


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        (PROTO + b"]" + STOP, "the file holds a list, expected a dict of tensors"),
        (state_dict({"epoch": b"K\x03"}), "the entry 'epoch' is a int, expected a tensor"),
        (state_dict({"state": b"}"}), "the entry 'state' is a dict, expected a tensor"),
        (PROTO + b"}K\x03K\x03s" + STOP, "the entry 3 is a int"),
        (PROTO + b"cposix\nsystem\n" + text("true") + b"\x85R.", r"names 'posix\.system'"),
    ],
)
def test_a_pickle_of_anything_but_tensors_is_refused(
    tmp_path: Path, pickle: bytes, message: str
) -> None:
    path = torch_bytes.write_zip(tmp_path / "x.bin", pickle, {})
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        TorchZipFile(path)
    assert caught.value.where.file == path
    assert caught.value.hint is not None


def test_compressed_entries_are_refused_unread(tmp_path: Path) -> None:
    pickle = pickled({"a": np.zeros(2**22, np.float32)})
    path = torch_bytes.write_zip(
        tmp_path / "x.bin", pickle, {"0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED
    )
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedAdapterError, match="is compressed or encrypted"):
            TorchZipFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # the storage would be 16 MiB; the directory is a few kilobytes
    assert peak < 2**20


def test_an_entry_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = torch_bytes.write(tmp_path / "x.bin", {"a": np.zeros(6, np.float32)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"archive/data/0") - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<II", data, at + 20, 2**20, 2**20)
    path.write_bytes(data)
    with pytest.raises(AdapterError, match="of 1048576 bytes leaves the file of"):
        TorchZipFile(path)


def test_a_big_pickle_is_not_read(tmp_path: Path) -> None:
    path = torch_bytes.write_zip(tmp_path / "x.bin", bytes(8 * 1024 * 1024 + 1), {})
    with pytest.raises(AdapterError, match="has 8388609 bytes, expected at most 8388608"):
        TorchZipFile(path)


def test_big_endian_tensors_are_refused(tmp_path: Path) -> None:
    path = torch_bytes.write_zip(tmp_path / "x.bin", state_dict({}), {}, byteorder=b"big")
    with pytest.raises(UnsupportedAdapterError, match="not little-endian"):
        TorchZipFile(path)
    path = torch_bytes.write_zip(tmp_path / "y.bin", state_dict({}), {}, byteorder=None)
    assert TorchZipFile(path).names == ()


def test_a_zip_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapters.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(UnsupportedAdapterError, match=r"has 0 entries data\.pkl, expected one"):
        TorchZipFile(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = torch_bytes.write_zip(tmp_path / "x.bin", state_dict({}), {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", PROTO + STOP)
    with pytest.raises(AdapterError, match="has 4 entries, expected at most 200000, each name on"):
        TorchZipFile(path)


def test_a_file_cut_at_any_byte_is_an_adapter_error(tmp_path: Path) -> None:
    whole = torch_bytes.write(tmp_path / "x.bin", {"a": np.ones((2, 3), np.float32)}).read_bytes()
    path = tmp_path / "cut.bin"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterError):
            TorchZipFile(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_an_adapter_error(data: st.DataObject, tmp_path: Path) -> None:
    path = torch_bytes.write(tmp_path / "x.bin", {"a": np.ones((2, 3), np.float32)})
    path.write_bytes(damaged(data, path.read_bytes()))
    try:
        file = TorchZipFile(path)
        for name in file.names:
            file.read(name)
    except AdapterError:
        return


def test_a_file_that_changes_between_two_reads_is_refused(tmp_path: Path) -> None:
    path = torch_bytes.write(tmp_path / "x.bin", {"a": np.ones(2, np.float32)})
    file = TorchZipFile(path)
    torch_bytes.write(path, {"a": np.ones(3, np.float32)})
    with pytest.raises(AdapterError, match="the file was changed since its header was read"):
        file.read("a")
    path.unlink()
    with pytest.raises(InputMissingError, match="does not exist"):
        file.read("a")


def test_an_unknown_tensor_is_named_with_its_neighbours(tmp_path: Path) -> None:
    path = torch_bytes.write(tmp_path / "x.bin", {"lora_A.weight": np.ones(2, np.float32)})
    with pytest.raises(AdapterError, match="no such tensor") as caught:
        TorchZipFile(path).read("lora_B.weight")
    assert caught.value.hint == "did you mean 'lora_A.weight'?"
