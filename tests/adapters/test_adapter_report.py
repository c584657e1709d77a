"""What a report says that lowering takes, and the error of one who does not give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.lowered import Need
from lora_quant.errors import UnsupportedAdapterError
from lora_quant.lower import inspect_adapter, lower_adapter
from tests.adapters.builders import PREFIX, Q0, Q1, Array, pair, write


def beft(*modules: str) -> dict[str, Array]:
    return {f"{PREFIX}{module}.beft_bias": np.ones((1, 5), np.float32) for module in modules}


def written(folder: Path, tensors: dict[str, Array]) -> Path:
    folder.mkdir()
    kind: dict[str, Any] = {"peft_type": "BEFT", "r": None, "lora_alpha": None}
    unused = {"lora_dropout": None, "init_lora_weights": None, "megatron_core": None}
    return write(folder, tensors, **kind, **unused, loftq_config=None, qalora_group_size=None)


def test_sizes_that_the_files_do_not_tell_are_asked_of_the_base(tmp_path: Path) -> None:
    report = inspect_adapter(written(tmp_path / "tone", beft(Q0, Q1)))
    assert report.needs is Need.SIZES
    assert [module.need for module in report.modules] == [Need.SIZES, Need.SIZES]


def test_of_a_lora_nothing_is_asked(tmp_path: Path) -> None:
    assert inspect_adapter(write(tmp_path, pair(Q0))).needs is Need.NOTHING


def test_a_size_that_nothing_tells_is_an_error_that_names_file_and_adapter(tmp_path: Path) -> None:
    path = written(tmp_path / "tone", beft(Q0))
    with pytest.raises(UnsupportedAdapterError, match="do not tell the size of this mod") as caught:
        lower_adapter(path, tmp_path / "out")
    where = caught.value.where
    assert where.file == path / "adapter_model.safetensors"
    assert (where.adapter, where.module) == ("tone", Q0)
    assert caught.value.hint == "name the base model with --base"
    assert not (tmp_path / "out").exists()
