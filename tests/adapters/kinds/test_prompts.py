"""Soft prompts: their shapes, the heads that ride along, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.contract import PromptRule
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.frame.tasks import TaskRule
from lora_quant.adapters.kinds.prefixes import CartridgeRule, PrefixTuningRule
from lora_quant.adapters.kinds.prompts import (
    CptRule,
    MultitaskPromptTuningRule,
    PromptTuningRule,
    PTuningRule,
)
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import checkpoint

Array = NDArray[Any]
ROWS = (PromptTuningRule(), PTuningRule(), CptRule())
KEYS = (PrefixTuningRule(), CartridgeRule())
MULTITASK = MultitaskPromptTuningRule()
FIELDS = {"num_virtual_tokens": 3, "token_dim": 8, "num_layers": 2, "num_attention_heads": 2}


def held(kind: str, tensors: dict[str, Array], **fields: Any) -> Checkpoint:
    return checkpoint(kind, tensors, target_modules=None, **(FIELDS | fields))


def prompt(rule: PromptRule, made: Checkpoint) -> Array:
    shape = rule.describe(made).prompt
    assert shape is not None
    values = rule.prompt(made, shape)
    assert values.shape == shape.shape
    assert values.dtype == np.float32
    return values


@pytest.mark.parametrize("rule", ROWS, ids=lambda rule: rule.kind)
def test_rows_are_passed_on(rule: PromptTuningRule) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    made = held(rule.kind, {"prompt_embeddings": rows})
    np.testing.assert_array_equal(prompt(rule, made), rows)
    assert rule.describe(made).prompt is not None
    assert rule.default_scale(made) == 1.0


@given(
    tokens=st.integers(1, 3),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
)
def test_keys_and_values_are_in_the_order_of_a_cache(
    tokens: int, layers: int, heads: int, size: int
) -> None:
    count = tokens * 2 * layers * heads * size
    stored = np.arange(count, dtype=np.float32).reshape(tokens, -1)
    fields = {"num_virtual_tokens": tokens, "num_layers": layers}
    fields |= {"num_attention_heads": heads, "token_dim": heads * size}
    for rule in KEYS:
        cache = prompt(rule, held(rule.kind, {"prompt_embeddings": stored}, **fields))
        for token in range(tokens):
            for part in range(2 * layers):
                for head in range(heads):
                    start = (part * heads + head) * size
                    expected = stored[token, start : start + size]
                    np.testing.assert_array_equal(cache[part, head, token], expected)


@given(task=st.integers(0, 2), ranks=st.integers(1, 3))
def test_a_tasks_rows_are_scaled_by_its_product(task: int, ranks: int) -> None:
    rng = np.random.default_rng([task, ranks])
    rows = rng.normal(size=(3, 8)).astype(np.float32)
    cols, tails = rng.normal(size=(3, 3, ranks)), rng.normal(size=(3, ranks, 8))
    tensors = {"prompt_embeddings": rows, "prefix_task_cols": cols.astype(np.float32)}
    tensors["prefix_task_rows"] = tails.astype(np.float32)
    made = held(MULTITASK.kind, tensors, num_tasks=3, num_ranks=ranks, task_id=task)
    ours = prompt(MULTITASK, made)
    sums = np.abs(cols[task]) @ np.abs(tails[task])
    # inputs are rounded to float32, then at most 3 products, their sum and one more product
    limit = 8 * 2.0**-24 * np.abs(rows) * sums
    assert (np.abs(ours - rows * (cols[task] @ tails[task])) <= limit).all()


def test_several_tasks_ask_for_a_choice() -> None:
    made = held(MULTITASK.kind, {"prompt_embeddings": np.ones((3, 8))}, num_tasks=3)
    assert isinstance(MULTITASK, TaskRule)
    assert MULTITASK.tasks(made) == 3
    with pytest.raises(AdapterError, match="the file has no prefix_task_cols"):
        MULTITASK.describe(made)
    tensors = {"prompt_embeddings": np.ones((3, 8)), "prefix_task_cols": np.ones((3, 3, 1))}
    tensors["prefix_task_rows"] = np.ones((3, 1, 8))
    with pytest.raises(UnsupportedAdapterError, match="holds 3 tasks, and none is chosen"):
        MULTITASK.describe(held(MULTITASK.kind, tensors, num_tasks=3))
    with pytest.raises(AdapterError, match=r"prefix_task_cols has shape \[3, 3, 1\], expected"):
        MULTITASK.describe(held(MULTITASK.kind, tensors, num_tasks=2, task_id=0))


def test_the_head_of_a_classifier_rides_along() -> None:
    tensors = {
        "prompt_embeddings": np.ones((3, 8)),
        "base_model.classifier.weight": np.ones((2, 8)),
    }
    saved = ["classifier", "score", "classifier", "score"]
    made = held("PROMPT_TUNING", tensors, task_type="SEQ_CLS", modules_to_save=saved)
    parameters = ROWS[0].describe(made).parameters
    assert {name: p.shape for name, p in parameters.items()} == {"classifier.weight": (2, 8)}
    with pytest.raises(UnsupportedAdapterError, match="is not part of the adapter"):
        ROWS[0].describe(held("PROMPT_TUNING", tensors))


def test_a_head_that_is_not_in_the_file_is_missed() -> None:
    saved = ["classifier", "score", "classifier", "score"]
    tensors = {"prompt_embeddings": np.ones((3, 8))}
    made = held("PROMPT_TUNING", tensors, task_type="SEQ_CLS", modules_to_save=saved)
    with pytest.raises(AdapterError, match="modules_to_save names 'classifier', 'score', expected"):
        ROWS[0].describe(made)


@pytest.mark.parametrize(
    "fields",
    [{"num_transformer_submodules": 2}, {"task_type": "SEQ_2_SEQ_LM"}],
)
@pytest.mark.parametrize("rule", [*ROWS, *KEYS, MULTITASK], ids=lambda rule: rule.kind)
def test_an_encoder_decoder_is_refused(rule: PromptRule, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedAdapterError, match="2 parts of a model") as caught:
        rule.describe(held(rule.kind, {"prompt_embeddings": np.ones((6, 8))}, **fields))
    assert caught.value.where.field == "num_transformer_submodules"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("rule", "shape", "fields", "message"),
    [
        (ROWS[0], (4, 8), {}, r"prompt_embeddings has shape \[4, 8\], expected \[3, 8\] from"),
        (ROWS[0], (3, 8), {"token_dim": None}, "token_dim is not given"),
        (KEYS[0], (3, 8), {}, r"prompt_embeddings has shape \[3, 8\], expected \[3, 32\] from"),
        (KEYS[0], (3, 32), {"num_layers": None}, "num_layers is not given"),
        (KEYS[0], (3, 32), {"num_attention_heads": 3}, "token_dim is 8, expected a multiple of "),
    ],
)
def test_a_prompt_of_another_shape_is_refused(
    rule: PromptRule, shape: tuple[int, ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        rule.describe(held(rule.kind, {"prompt_embeddings": np.ones(shape)}, **fields))


def test_an_unknown_field_is_refused() -> None:
    made = held("PROMPT_TUNING", {"prompt_embeddings": np.ones((3, 8))}, more=1)
    with pytest.raises(UnsupportedAdapterError, match="more is 1, and what it does is not known"):
        ROWS[0].describe(made)


def test_values_that_are_not_finite_are_refused() -> None:
    rows = np.ones((3, 8))
    rows[1, 2] = np.nan
    made = held("PROMPT_TUNING", {"prompt_embeddings": rows})
    with pytest.raises(AdapterError, match="1 of 24 values are not finite"):
        prompt(ROWS[0], made)


def test_a_prompt_has_no_modules() -> None:
    made = held("PROMPT_TUNING", {"prompt_embeddings": np.ones((3, 8))})
    assert not ROWS[0].describe(made).shapes
    with pytest.raises(AdapterError, match="PROMPT_TUNING does not adapt the module 'q_proj'"):
        ROWS[0].lower(made, ModuleShape("q_proj", 1, 2, 3), None)
