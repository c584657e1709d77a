from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.builders import Q0, Q1, RULES, V0, load, pair, write

QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}


def test_modules_are_sorted_and_rank_is_the_largest(tmp_path: Path) -> None:
    tensors = pair(Q1) | pair(V0, rank=7) | pair(Q0)
    adapter = load(tmp_path, tensors, **QV, rank_pattern={"v_proj": 7})
    assert list(adapter.shapes) == [Q0, V0, Q1]
    assert adapter.rank == 7
    assert adapter.name == "tone"


def test_the_scale_is_the_one_that_most_modules_share(tmp_path: Path) -> None:
    tensors = pair(Q0) | pair(Q1) | pair(V0)
    adapter = load(tmp_path, tensors, **QV, alpha_pattern={"q_proj": 12})
    assert adapter.scale == 3.0
    assert adapter.deviation(Q0) == 1.0
    assert adapter.deviation(V0) == 2.0 / 3.0
    assert adapter.scale * adapter.deviation(V0) == pytest.approx(2.0, rel=2**-52)


def test_at_a_tie_the_scale_is_the_configurations_own(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0) | pair(V0), **QV, alpha_pattern={"q_proj": 12})
    assert adapter.scale == 2.0


def test_at_a_tie_of_others_the_scale_is_the_first_modules(tmp_path: Path) -> None:
    patterns = {"v_proj": 16, "q_proj": 12}
    adapter = load(tmp_path, pair(V0) | pair(Q0), **QV, alpha_pattern=patterns)
    assert adapter.scale == 3.0


def test_a_module_may_be_switched_off_but_not_all(tmp_path: Path) -> None:
    tensors = pair(Q0) | pair(Q1) | pair(V0)
    adapter = load(tmp_path / "some", tensors, **QV, alpha_pattern={"q_proj": 0})
    assert adapter.scale == 2.0
    assert adapter.deviation(Q0) == 0.0
    with pytest.raises(AdapterError, match="the scale of every module is 0") as caught:
        load(tmp_path / "all", tensors, **QV, lora_alpha=0)
    assert caught.value.where.field == "lora_alpha"


def test_an_unknown_module_is_named_with_its_neighbours(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0))
    for ask in (adapter.lower, adapter.deviation):
        with pytest.raises(AdapterError, match="adapter 'tone' does not adapt this mod") as caught:
            ask(Q0 + "x")
        assert caught.value.hint == f"did you mean {Q0!r}?"


def test_targets_can_be_held_against_a_graph(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0))
    assert adapter.targets.matches(Q1)
    assert not adapter.targets.matches(V0)


@pytest.mark.parametrize(
    ("peft_type", "hint"),
    [
        ("LOHA", "merge it into the base"),
        ("lora", "did you mean 'LORA'?"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, peft_type: str, hint: str) -> None:
    message = f"peft_type is '{peft_type}', expected one of LORA"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), peft_type=peft_type)
    assert caught.value.where.adapter == "tone"
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_loading_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: SafetensorsFile, name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(SafetensorsFile, "read", read)
    tensors = pair(Q0)
    for array in tensors.values():
        array[:] = np.nan
    assert load(tmp_path, tensors).rank == 4


def test_a_rank_pattern_of_its_own_for_each_of_many_modules_is_still_quick(tmp_path: Path) -> None:
    modules = [f"model.layers.{i}.mlp.q_proj" for i in range(500)]
    tensors: dict[str, Any] = {}
    for module in modules:
        tensors |= pair(module, rank=2)
    write(tmp_path, tensors, rank_pattern=dict.fromkeys(modules, 2))
    start = time.perf_counter()
    adapter = load_adapter("tone", tmp_path, RULES)
    for module in modules:
        adapter.lower(module)
    # a quarter of a million pattern tests take about half a second; a cubic loop takes minutes
    assert time.perf_counter() - start < 20
