"""What a configuration says is trained of the base, and a file that does not have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.adapter import load_adapter
from lora_quant.errors import AdapterError
from lora_quant.findings import Finding, Severity
from tests.adapters.builders import PREFIX, Q0, Q1, RULES, V0, Array, load, pair, write

HEAD = f"{PREFIX}lm_head.weight"
SCORE = f"{PREFIX}score.weight"


def bias(module: str) -> dict[str, Array]:
    return {f"{PREFIX}{module}.base_layer.bias": np.ones(5, np.float32)}


def biases(folder: Path, tensors: dict[str, Array], value: str) -> tuple[Finding, ...]:
    targets = ["q_proj", "v_proj"]
    made = {**pair(Q0), **pair(Q1), **pair(V0), **tensors}
    return load(folder, made, bias=value, target_modules=targets).findings


@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "SEQ_CLS"])
def test_a_module_to_save_without_tensors_is_an_error(tmp_path: Path, task: str | None) -> None:
    tensors = pair(Q0) | {HEAD: np.ones((7, 5), np.float32)}
    saved: dict[str, Any] = {"modules_to_save": ["lm_head", "embed_tokens"], "task_type": task}
    with pytest.raises(AdapterError) as caught:
        load(tmp_path, tensors, **saved)
    error = caught.value
    assert error.message == (
        "modules_to_save names 'embed_tokens', expected tensors of it, and "
        "adapter_model.safetensors has none"
    )
    assert (error.where.field, error.where.adapter) == ("modules_to_save", "tone")
    assert error.hint is not None
    assert error.hint.startswith("the checkpoint is incomplete: save or download it again")


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_of_the_heads_that_peft_adds_for_a_task_one_is_enough(tmp_path: Path, task: str) -> None:
    tensors = pair(Q0) | {SCORE: np.ones((2, 5), np.float32)}
    saved = ["classifier", "score"]
    adapter = load(tmp_path, tensors, task_type=task, modules_to_save=saved)
    assert set(adapter.parameters) == {"score.weight"}
    with pytest.raises(AdapterError, match="modules_to_save names 'classifier', expected tensors"):
        load(tmp_path, tensors, task_type="CAUSAL_LM", modules_to_save=saved)
    with pytest.raises(AdapterError, match="modules_to_save names 'classifier', 'score', expected"):
        load(tmp_path, pair(Q0), task_type=task, modules_to_save=saved)


@pytest.mark.parametrize("value", ["all", "lora_only"])
def test_biases_that_are_said_to_be_trained_and_are_not_there_are_missed(
    tmp_path: Path, value: str
) -> None:
    (warning,) = biases(tmp_path, {}, value)
    assert (warning.rule, warning.severity) == ("adapter/bias-without-tensors", Severity.WARNING)
    assert warning.message == (
        f"bias is {value!r}, and the checkpoint has no bias that was trained"
    )
    assert (warning.where.field, warning.where.adapter) == ("bias", "tone")


@pytest.mark.parametrize("value", ["all", "lora_only"])
def test_a_bias_of_one_layer_is_missed_in_the_other(tmp_path: Path, value: str) -> None:
    (warning,) = biases(tmp_path, bias(Q0), value)
    assert warning.message == (
        f"bias is {value!r}, and the checkpoint has no bias of '{Q1}', while it has those of the "
        "same modules in other layers"
    )
    assert biases(tmp_path, bias(Q0) | bias(Q1), value) == ()


def test_the_bias_of_a_saved_head_is_not_the_trained_one(tmp_path: Path) -> None:
    head = {SCORE: np.ones((2, 5), np.float32), f"{PREFIX}score.bias": np.ones(2, np.float32)}
    made = write(tmp_path, pair(Q0) | head, bias="all", modules_to_save=["score"])
    (warning,) = load_adapter("tone", made, RULES).findings
    assert warning.rule == "adapter/bias-without-tensors"


def test_no_bias_is_missed_where_none_was_trained(tmp_path: Path) -> None:
    assert biases(tmp_path, {}, "none") == ()


def test_a_task_of_a_kind_without_tasks_is_refused(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    with pytest.raises(AdapterError) as caught:
        load_adapter("tone", tmp_path, RULES, task=1)
    assert caught.value.message == "task 1 is chosen, and an adapter of kind LORA has no tasks"
    assert (caught.value.where.adapter, caught.value.where.field) == ("tone", None)
    assert caught.value.hint == (
        "remove task_id from its entry in lora_config.yaml, or leave --task out"
    )
