from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.formats.gguf_file import GgufFile
from lora_quant.adapters.formats.gguf_header import Items
from lora_quant.errors import AdapterError, InputMissingError, UnsupportedAdapterError
from tests.adapters.arbitrary import ANY_FILE, damaged, float_arrays
from tests.adapters.formats import gguf_bytes
from tests.adapters.formats.gguf_bytes import assemble, field, record, text


@ANY_FILE
@given(
    arrays=st.dictionaries(st.text(st.characters(codec="utf-8")), float_arrays(), max_size=4),
    version=st.sampled_from([2, 3]),
    alignment=st.sampled_from([1, 8, 32, 64]),
)
def test_every_tensor_is_read_back_bit_for_bit(
    arrays: dict[str, np.ndarray[Any, Any]], version: int, alignment: int, tmp_path: Path
) -> None:
    path = gguf_bytes.write(
        tmp_path / "x.gguf", arrays, version=version, general__alignment=alignment
    )
    file = GgufFile(path)
    assert file.names == tuple(arrays)
    assert file.metadata["general.architecture"] == "qwen2"
    assert file.fields["adapter.lora.alpha"] == 8.0
    for name, array in arrays.items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_arrays_are_passed_over(tmp_path: Path) -> None:
    texts = struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    numbers = struct.pack("<IIQ", 9, 5, 3) + bytes(12)
    nested = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 2) + bytes(2)
    path = tmp_path / "x.gguf"
    path.write_bytes(assemble([field("t", texts), field("n", numbers), field("d", nested)], []))
    assert dict(GgufFile(path).fields) == {"t": Items(2), "n": Items(3), "d": Items(1)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (assemble([field("a", 1), field("a", 2)], []), "the field 'a' appears twice"),
        (
            assemble([], [record("a", (1,), 0, 0), record("a", (1,), 0, 0)], bytes(4)),
            "the tensor 'a' appears twice",
        ),
        (assemble([], [record("a", (1, 1, 1, 1, 1), 0, 0)]), "has 5 axes, expected at most 4"),
        (assemble([], [record("a", (2, 3), 0, 0)], bytes(23)), r"\[2, 3\] ends at byte"),
        (
            assemble([], [record("a", (0, 2**62), 0, 0)], bytes(23)),
            "larger than memory can",
        ),
        (assemble([], [record("a", (2**62, 2**62), 0, 0)]), "but the file has"),
        (assemble([], [record("a", (1,), 0, 2**62)], bytes(4)), "but the file has"),
        (assemble([field("general.alignment", 3)], []), "alignment is 3, expected a power of two"),
        (assemble([field("general.alignment", 0)], []), "alignment is 0, expected a power of two"),
        (assemble([field("general.alignment", "x")], []), "alignment is 'x', expected a power"),
        (assemble([field("a", struct.pack("<I", 13))], []), "type 13, which is not known"),
        (
            assemble([field("a", struct.pack("<IIQ", 9, 0, 2**60))], []),
            "the file ends within its header",
        ),
        (
            assemble([field("a", struct.pack("<IIQ", 9, 8, 2**60))], []),
            "an array claims 1152921504606846976 values",
        ),
        (
            assemble([field("a", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 4)], []),
            "type 9, which is not known",
        ),
        (
            assemble([field("a", struct.pack("<IQ", 8, 2**60))], []),
            "a text claims 1152921504606846976 bytes",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 records"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "claims 1152921504606846976 records"),
        (
            assemble([struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 0)], []),
            "a text is not UTF-8",
        ),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
    ],
)
def test_damage_is_an_adapter_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError, match=message) as caught:
            GgufFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(caught.value) is AdapterError
    assert caught.value.where.file == path
    # none of these files is longer than 200 bytes; a read buffer is 8192
    assert peak < 200_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (assemble([], [], version=1), "GGUF version 1, expected version 2 or 3"),
        (assemble([], [], version=4), "GGUF version 4, expected version 2 or 3"),
        (assemble([], [], version=3 << 24), "GGUF in big-endian order"),
        (
            assemble([], [record("a", (32,), 8, 0)], bytes(34)),
            "ggml type 8, which is quantized or no float",
        ),
    ],
)
def test_other_versions_and_quantized_tensors_are_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        GgufFile(path)
    assert caught.value.hint is not None
    assert "convert the adapter again" in caught.value.hint


def test_a_file_cut_at_any_byte_is_an_adapter_error(tmp_path: Path) -> None:
    arrays = {"blk.0.attn_q.weight.lora_a": np.ones((2, 3), np.float32)}
    whole = gguf_bytes.write(tmp_path / "x.gguf", arrays).read_bytes()
    # the last tensor is padded, which nothing needs
    end = len(whole) - 8
    path = tmp_path / "cut.gguf"
    for length in range(end):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterError) as caught:
            GgufFile(path)
        assert type(caught.value) is AdapterError
    path.write_bytes(whole[:end])
    assert GgufFile(path).names == tuple(arrays)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_an_adapter_error(data: st.DataObject, tmp_path: Path) -> None:
    path = gguf_bytes.write(tmp_path / "x.gguf", {"a.lora_a": np.ones((2, 3), np.float32)})
    path.write_bytes(damaged(data, path.read_bytes()))
    try:
        file = GgufFile(path)
        for name in file.names:
            file.read(name)
    except AdapterError:
        return


def test_a_file_that_changes_between_two_reads_is_refused(tmp_path: Path) -> None:
    path = gguf_bytes.write(tmp_path / "x.gguf", {"a": np.ones(2, np.float32)})
    file = GgufFile(path)
    with pytest.raises(AdapterError, match="no such tensor"):
        file.read("b")
    gguf_bytes.write(path, {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})
    with pytest.raises(AdapterError, match="the file was changed since its header was read"):
        file.read("a")
    path.unlink()
    with pytest.raises(InputMissingError, match="does not exist"):
        file.read("a")
