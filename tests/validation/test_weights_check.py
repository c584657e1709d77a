"""Weights files by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from lora_quant.findings import Finding, Severity
from lora_quant.validation.files import stored_tensors
from lora_quant.validation.files.weights_check import check_weights
from tests.adapters.arbitrary import damaged
from tests.adapters.builders import write

A = "/layers.0/q_proj/lora_A"
FIXTURES = Path(__file__).parents[1] / "fixtures"


def rules(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.rule for finding in findings]


def test_sound_weights_have_a_note_that_tells_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.safetensors"
    save_file({A: np.ones((4, 2), np.float32), "b": np.ones(3, np.float16)}, path)
    (note,) = check_weights(path)
    assert (note.rule, note.severity, note.hint) == ("weights/content", Severity.NOTE, "")
    assert note.message == f"2 tensors (1 F16, 1 F32) with 38 bytes: {A!r}, 'b'"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_counted_across_chunks(
    dtype: type, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensors, "_CHUNK_BYTES", 16)
    path = tmp_path / "w.safetensors"
    values: NDArray[Any] = np.zeros((5, 7), dtype)
    values[0, 0] = values[2, 3] = values[4, 6] = value
    # safetensors' NumPy door knows no bfloat16, so the bytes are written through another type
    if dtype is ml_dtypes.bfloat16:
        data = save({A: values.view(np.float16)}).replace(b'"F16"', b'"BF16"', 1)
        header = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + header].rstrip(b" ")
        path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    else:
        save_file({A: values}, path)
    found = check_weights(path)
    assert rules(found) == ["weights/values", "weights/content"]
    assert found[0].message == "3 of 35 values are NaN or Inf"
    assert (found[0].where.file, found[0].where.tensor) == (path, A)


def test_a_file_without_tensors_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({}, path)
    assert rules(check_weights(path)) == ["weights/no-tensors"]


def test_tensors_that_no_branch_has_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({A: np.zeros((0, 2), np.float32), "ids": np.zeros(2, np.int64)}, path)
    empty, other, _ = check_weights(path)
    assert (empty.rule, empty.where.tensor) == ("weights/empty-tensor", A)
    assert (other.rule, other.where.tensor) == ("weights/not-float", "ids")
    assert "I64" in other.message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x00" * 40, b"PK\x03\x04 no archive"])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    (finding,) = check_weights(path)
    assert (finding.rule, finding.where.file) == ("weights/invalid", path)


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    assert rules(check_weights(tmp_path / "w.safetensors")) == ["document/missing"]


def test_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x80\x02cos\nsystem\n(S'false'\ntR.")
    (finding,) = check_weights(path)
    assert "a pickle can run code" in finding.message


def test_weights_of_an_adapter_are_checked_as_the_adapter(tmp_path: Path) -> None:
    factors = {"A": np.ones((4, 8), np.float32), "B": np.ones((6, 4), np.float32)}
    names = {k: f"base_model.model.q_proj.lora_{k}.weight" for k in factors}
    folder = write(tmp_path, {names[k]: factors[k] for k in factors})
    assert rules(check_weights(folder / "adapter_model.safetensors")) == ["adapter/content"]
    # another file beside the configuration is not the adapter
    save_file({"x": factors["A"]}, folder / "inputs.safetensors")
    assert rules(check_weights(folder / "inputs.safetensors")) == ["weights/content"]


@pytest.mark.parametrize("name", ["lycoris", "gguf", "mlx"])
def test_adapters_of_other_formats_are_told_by_their_names(name: str) -> None:
    files = [
        file
        for folder in (FIXTURES / "formats").glob(f"{name}*")
        for file in folder.iterdir()
        if file.suffix in (".safetensors", ".gguf") and file.stem in ("adapter", "adapters")
    ]
    assert files
    for file in files:
        assert all(rule.startswith("adapter/") for rule in rules(check_weights(file)))


@settings(max_examples=60)
@given(data=st.data())
def test_no_damage_raises(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    whole = save({A: np.ones((4, 2), np.float32), "b": np.ones(3, np.float16)})
    path.write_bytes(damaged(data, whole))
    for finding in check_weights(path):
        assert finding.rule.partition("/")[0] in ("weights", "adapter")


def test_every_truncation_is_found(tmp_path: Path) -> None:
    whole = save({A: np.ones((4, 2), np.float32)})
    path = tmp_path / "w.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert rules(check_weights(path)) == ["weights/invalid"], length
