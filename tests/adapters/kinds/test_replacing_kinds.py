"""LN_TUNING and TRAINABLE_TOKENS: which parameters of the base are replaced, and by what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.kinds.ln_tuning import LnTuningRule
from lora_quant.adapters.kinds.trainable_tokens import TrainableTokensRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from lora_quant.findings import Severity
from tests.adapters.kinds.held import checkpoint

NORMS = LnTuningRule()
TOKENS = TrainableTokensRule()
EMBED = "base_model.model.model.embed_tokens.trainable_tokens_delta"


def tokens(rows: int = 3, **fields: Any) -> Any:
    fields = {"target_modules": ["embed_tokens"], "token_indices": [1, 30, 4], **fields}
    return checkpoint("TRAINABLE_TOKENS", {EMBED: np.ones((rows, 5))}, **fields)


def test_weights_and_biases_of_norms_are_replaced() -> None:
    tensors = {
        "base_model.model.ln_f.ln_tuning_layers.weight": np.ones(4),
        "base_model.model.ln_f.ln_tuning_layers.bias": np.ones(4),
        "base_model.model.h.0.ln_1.ln_tuning_layers.weight": np.ones(4),
        "base_model.model.score.weight": np.ones((2, 4)),
    }
    fields = {"target_modules": ["ln_f", "ln_1", "ln_2"], "modules_to_save": ["score"]}
    found = NORMS.describe(checkpoint("LN_TUNING", tensors, **fields))
    assert {name: (p.tensor, p.shape, p.rows) for name, p in found.parameters.items()} == {
        "ln_f.weight": ("base_model.model.ln_f.ln_tuning_layers.weight", (4,), None),
        "ln_f.bias": ("base_model.model.ln_f.ln_tuning_layers.bias", (4,), None),
        "h.0.ln_1.weight": ("base_model.model.h.0.ln_1.ln_tuning_layers.weight", (4,), None),
        "score.weight": ("base_model.model.score.weight", (2, 4), None),
    }
    assert not found.shapes
    assert [finding.rule for finding in found.findings] == ["adapter/target-without-tensors"]


def test_a_norm_that_is_no_target_is_refused() -> None:
    tensors = {"ln_f.ln_tuning_layers.weight": np.ones(4)}
    with pytest.raises(AdapterError, match="'ln_f' has tensors but is not a target"):
        NORMS.describe(checkpoint("LN_TUNING", tensors, target_modules=["ln_1"]))


def test_a_tensor_of_neither_is_refused() -> None:
    tensors = {"ln_f.ln_tuning_layers.scale": np.ones(4)}
    with pytest.raises(UnsupportedAdapterError):
        NORMS.describe(checkpoint("LN_TUNING", tensors, target_modules=["ln_f"]))


def test_an_integer_norm_is_refused() -> None:
    tensors = {"ln_f.ln_tuning_layers.weight": np.ones(4, np.int64)}
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I64, expected one of F64"):
        NORMS.describe(checkpoint("LN_TUNING", tensors, target_modules=["ln_f"]))


def test_rows_of_an_embedding_are_replaced() -> None:
    found = TOKENS.describe(tokens())
    rows = found.parameters["model.embed_tokens.weight"]
    assert (rows.tensor, rows.shape, rows.rows) == (EMBED, (3, 5), (1, 30, 4))


def test_rows_of_one_table_are_for_what_the_base_ties_to_it_too() -> None:
    found = TOKENS.describe(tokens())
    assert found.parameters["model.embed_tokens.weight"].with_ties
    (note,) = found.findings
    assert (note.rule, note.severity) == ("adapter/rows-with-ties", Severity.NOTE)
    assert note.message.startswith("rows of 'model.embed_tokens' are replaced; where the base ties")
    assert note.where.field == "token_indices"


def test_a_tied_output_layer_comes_along_without_being_named() -> None:
    head = "base_model.model.lm_head.trainable_tokens_delta"
    made = {EMBED: np.ones((3, 5)), head: np.ones((3, 5))}
    fields = {"target_modules": ["embed_tokens"], "token_indices": [1, 30, 4]}
    found = TOKENS.describe(checkpoint("TRAINABLE_TOKENS", made, **fields))
    assert set(found.parameters) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert not any(parameter.with_ties for parameter in found.parameters.values())
    (finding,) = found.findings
    assert (finding.rule, finding.severity) == ("adapter/rows-not-named", Severity.WARNING)
    assert finding.message.startswith("target_modules does not name 'lm_head', and its rows are")
    assert finding.where.module == "lm_head"
    named = fields | {"target_modules": ["embed_tokens", "lm_head"]}
    assert not TOKENS.describe(checkpoint("TRAINABLE_TOKENS", made, **named)).findings


def test_rows_of_another_width_are_of_no_tied_layer() -> None:
    head = "base_model.model.lm_head.trainable_tokens_delta"
    made = {EMBED: np.ones((3, 5)), head: np.ones((3, 6))}
    fields = {"target_modules": ["embed_tokens"], "token_indices": [1, 30, 4]}
    message = r"'lm_head' has rows of shape \[3, 6\] but is not a target, expected those of"
    with pytest.raises(AdapterError, match=message) as caught:
        TOKENS.describe(checkpoint("TRAINABLE_TOKENS", made, **fields))
    assert (caught.value.where.module, caught.value.where.field) == ("lm_head", "target_modules")


def test_rows_of_nothing_that_is_named_are_refused() -> None:
    with pytest.raises(AdapterError, match="has tensors but is not a target"):
        TOKENS.describe(tokens(target_modules=["wte"]))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (2, {}, r"the tensor has shape \[2, 5\], expected \[3, dim\]: one row for each"),
        (3, {"token_indices": [1, 4, 1]}, "token_indices names 1 twice"),
        (3, {"token_indices": [1, -4, 2]}, "expected a whole number from 0 or a list of them"),
        (3, {"token_indices": {"embed_tokens": [1]}}, "expected a whole number from 0 or a list"),
        (3, {"token_indices": None}, r"expected \[0, dim\]"),
    ],
)
def test_rows_that_the_configuration_does_not_tell_are_refused(
    rows: int, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        TOKENS.describe(tokens(rows, **fields))
