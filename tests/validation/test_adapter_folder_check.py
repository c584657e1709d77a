"""Adapters by themselves: all that a build would refuse or remark, and the values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.findings import Finding, Severity
from lora_quant.validation.files.adapter_folder_check import check_adapter_folder
from tests.adapters.builders import write

FIXTURES = Path(__file__).parents[1] / "fixtures"
PREFIX = "base_model.model.layers.0.q_proj"
LORA_A, LORA_B = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"


def factors() -> dict[str, NDArray[Any]]:
    return {LORA_A: np.ones((4, 8), np.float32), LORA_B: np.ones((6, 4), np.float32)}


def one(findings: tuple[Finding, ...], rule: str) -> Finding:
    (found,) = (finding for finding in findings if finding.rule == rule)
    return found


def problems(findings: tuple[Finding, ...]) -> list[str]:
    return [f.rule for f in findings if f.severity is not Severity.NOTE]


def test_a_sound_adapter_has_a_note_that_tells_what_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path, factors())
    (note,) = check_adapter_folder(folder)
    assert note.rule == "adapter/content"
    assert note.message == "LORA (peft); 1 modules; rank 4, scale 2"
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert check_adapter_folder(folder / file) == (note,)


def test_values_that_are_not_finite_are_told_by_tensor(tmp_path: Path) -> None:
    tensors = factors()
    tensors[LORA_A][1, 2] = np.nan
    tensors[LORA_B][:, 0] = np.inf
    found = check_adapter_folder(write(tmp_path, tensors))
    values = {f.where.tensor: f.message for f in found if f.rule == "adapter/values"}
    assert values == {
        LORA_A: "1 of 32 values are NaN or Inf",
        LORA_B: "6 of 24 values are NaN or Inf",
    }


def test_an_adapter_that_was_never_trained_is_told(tmp_path: Path) -> None:
    tensors = factors()
    tensors[LORA_B][:] = 0
    found = check_adapter_folder(write(tmp_path, tensors))
    assert problems(found) == ["adapter/zero-factor"]
    assert one(found, "adapter/zero-factor").where.file == tmp_path / "adapter_model.safetensors"


def test_one_b_of_zeros_among_others_is_fine(tmp_path: Path) -> None:
    tensors = factors() | {n.replace("0", "1"): np.zeros_like(t) for n, t in factors().items()}
    assert problems(check_adapter_folder(write(tmp_path, tensors))) == []


def test_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    tensors = factors()
    del tensors[LORA_B]
    (finding,) = check_adapter_folder(write(tmp_path, tensors))
    assert finding.rule == "adapter/invalid"
    assert "lora_B" in finding.message


def test_a_rank_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    (finding,) = check_adapter_folder(write(tmp_path, factors(), r=8))
    assert finding.rule == "adapter/invalid"
    assert finding.where.module == "layers.0.q_proj"


def test_a_target_without_tensors_is_told_by_the_reader(tmp_path: Path) -> None:
    found = check_adapter_folder(write(tmp_path, factors(), target_modules=["q_proj", "v_proj"]))
    finding = one(found, "adapter/target-without-tensors")
    assert finding.where.file == tmp_path / "adapter_config.json"
    assert finding.where.adapter is None
    # json.dumps writes all into one line
    assert (finding.where.line, finding.where.field) == (1, "target_modules")
    text = (tmp_path / "adapter_config.json").read_text(encoding="utf-8")
    assert finding.where.column is not None
    assert text[finding.where.column - 1 :].startswith(('"target_modules"', '["q_proj"'))


@pytest.mark.parametrize("kind", ["SHADOW", "NO_SUCH_KIND"])
def test_a_kind_that_is_not_compiled_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    (finding,) = check_adapter_folder(write(tmp_path, factors(), peft_type=kind))
    assert finding.rule == "adapter/unsupported"
    assert finding.hint


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, factors())
    (folder / "adapter_config.json").write_text(json.dumps([1]), encoding="utf-8")
    (finding,) = check_adapter_folder(folder)
    assert (finding.rule, finding.where.file) == (
        "adapter/invalid",
        folder / "adapter_config.json",
    )


def test_a_folder_without_an_adapter_is_a_finding(tmp_path: Path) -> None:
    (finding,) = check_adapter_folder(tmp_path)
    assert (finding.rule, finding.where.file) == ("document/missing", tmp_path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("prompt_tuning", "a soft prompt ["),
        ("supertuning_saved", "not plain LoRA: its update has no low rank"),
    ],
)
def test_the_note_tells_what_an_adapter_has_beside_low_rank(kind: str, told: str) -> None:
    assert told in one(check_adapter_folder(FIXTURES / "kinds" / kind), "adapter/content").message


def test_the_note_tells_what_an_adapter_replaces(tmp_path: Path) -> None:
    norm = {"base_model.model.norm.weight": np.ones(8, np.float32)}
    found = check_adapter_folder(write(tmp_path, {**factors(), **norm}, modules_to_save=["norm"]))
    assert "; replaces 1 parameters" in one(found, "adapter/content").message


def test_of_an_adapter_with_tasks_the_first_is_looked_at() -> None:
    found = check_adapter_folder(FIXTURES / "kinds" / "poly_task0")
    assert problems(found) == []
    assert "tasks, of which the first was looked at" in one(found, "adapter/content").message


def test_every_fixture_of_peft_that_is_not_refused_is_sound() -> None:
    for folder in sorted((FIXTURES / "peft").iterdir()):
        if (folder / "adapter_config.json").exists():
            found = check_adapter_folder(folder)
            assert all(f.rule.startswith("adapter/") for f in found), folder
            assert found[-1].rule in ("adapter/content", "adapter/unsupported"), folder
