"""Tensors that were put aside come back as they were, like those of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.files.spill_file import SpillFile
from lora_quant.adapters.files.spilled_tensors import SpilledTensors
from lora_quant.errors import AdapterError, PackError, UnsupportedAdapterError

NAMES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(list(NAMES))), max_size=6), st.integers(0, 2**32))
def test_read_gives_what_was_put(tensors: list[tuple[tuple[int, ...], str]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [
        np.asarray(rng.normal(size=shape), NAMES[dtype]).astype(NAMES[dtype])
        for shape, dtype in tensors
    ]
    spill = SpillFile()
    sources = [SpilledTensors(spill, Path(f"{number}.onnx")) for number in (0, 1)]
    for number, value in enumerate(values):
        sources[number % 2].put(f"t{number}", value.T.copy().T)
    for number, (value, (shape, dtype)) in enumerate(zip(values, tensors, strict=True)):
        source = sources[number % 2]
        info = source.info(f"t{number}")
        assert (info.dtype, info.shape, info.size) == (dtype, shape, value.nbytes)
        for back in (source.read(f"t{number}"), source.read_numbers(f"t{number}")):
            assert back.dtype == value.dtype
            assert back.flags.c_contiguous
            assert back.tobytes() == value.tobytes()
    assert [source.names for source in sources] == [
        tuple(f"t{n}" for n in range(len(values)) if n % 2 == number) for number in (0, 1)
    ]


def test_a_part_of_an_array_is_kept_alone() -> None:
    source = SpilledTensors(SpillFile(), Path("one.onnx"))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    source.put("columns", whole[:, 1:3])
    whole[:] = 0
    np.testing.assert_array_equal(source.read("columns"), [[1, 2], [5, 6], [9, 10]])


def test_an_unknown_name() -> None:
    source = SpilledTensors(SpillFile(), Path("one.onnx"))
    source.put("lora_A", np.zeros(1, np.float32))
    with pytest.raises(AdapterError, match="no such tensor") as caught:
        source.read("lora_a")
    assert caught.value.hint == "did you mean 'lora_A'?"
    assert caught.value.where.file == Path("one.onnx")
    assert dict(source.metadata) == {}


def test_a_type_that_no_checkpoint_has() -> None:
    source = SpilledTensors(SpillFile(), Path("one.onnx"))
    with pytest.raises(UnsupportedAdapterError, match="the tensor is int8, expected one of F64"):
        source.put("t", np.zeros(1, np.int8))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, offset: int) -> None:
            raise OSError(28, "No space left on device")

    spill = SpillFile()
    monkeypatch.setattr(spill, "_file", Full())
    with pytest.raises(PackError, match="No space left on device") as caught:
        spill.put(np.zeros(1))
    assert "TMPDIR" in str(caught.value.hint)
