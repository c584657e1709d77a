"""What comes with a LoRA besides branches: rows, ties, attentions, biases, and what to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.description import ParameterShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from lora_quant.findings import Severity
from tests.adapters.builders import PREFIX, Q0, load, low_rank, pair

EMBED, HEAD = "model.embed_tokens", "lm_head"
ROWS = np.arange(10, dtype=np.float32).reshape(2, 5)


def rows(module: str, values: Any = ROWS) -> dict[str, Any]:
    return {f"{PREFIX}{module}.token_adapter.trainable_tokens_delta": values}


@pytest.mark.parametrize("indices", [[7, 3], {"embed_tokens": [7, 3]}])
def test_rows_are_told_with_their_indices_in_the_order_of_the_file(
    tmp_path: Path, indices: Any
) -> None:
    adapter = load(tmp_path, pair(Q0) | rows(EMBED), trainable_token_indices=indices)
    name = f"{EMBED}.weight"
    (tensor,) = rows(EMBED)
    expected = ParameterShape(name, tensor, (2, 5), rows=(7, 3), with_ties=True)
    assert dict(adapter.parameters) == {name: expected}
    np.testing.assert_array_equal(adapter.parameter(name), ROWS)
    (finding,) = adapter.findings
    assert (finding.rule, finding.severity) == ("adapter/rows-with-ties", Severity.NOTE)
    assert f"rows of {EMBED!r} are replaced" in finding.message


def test_tables_with_rows_of_their_own_are_not_tied(tmp_path: Path) -> None:
    indices = {"embed_tokens": [1, 2], "lm_head": [3, 4]}
    tensors = pair(Q0) | rows(EMBED) | rows(HEAD)
    adapter = load(tmp_path, tensors, trainable_token_indices=indices)
    found = {p.parameter: (p.rows, p.with_ties) for p in adapter.parameters.values()}
    assert found == {f"{EMBED}.weight": ((1, 2), False), f"{HEAD}.weight": ((3, 4), False)}
    assert adapter.findings == ()


def test_indices_without_rows_are_reported(tmp_path: Path) -> None:
    indices = {"embed_tokens": [1, 2], "lm_head": [1, 2]}
    adapter = load(tmp_path, pair(Q0) | rows(EMBED), trainable_token_indices=indices)
    messages = [f.message for f in adapter.findings if f.severity is Severity.WARNING]
    assert messages == [
        "the indices for 'lm_head' of trainable_token_indices have no tensor in the checkpoint"
    ]


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        (None, ROWS, f"no lists of trainable_token_indices are for module '{EMBED}', expected one"),
        ({"wte": [1, 2]}, ROWS, "no lists of trainable_token_indices are for module"),
        ({"tokens": [1, 2], "embed_tokens": [3, 4]}, ROWS, "2 lists of trainable_token_indices"),
        ([1, 2, 3], ROWS, r"shape \[2, 5\], expected two axes and a row for each of 3 token ind"),
        ([1, 2], ROWS[0], r"has shape \[5\], expected two axes"),
        ([1, 1], ROWS, "are not a list of different whole numbers from 0"),
        ([-1, 2], ROWS, "are not a list of different whole numbers from 0"),
        ({"embed_tokens": "x"}, ROWS, "the indices for 'embed_tokens' of trainable_token_indices"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_their_indices_are_errors(
    tmp_path: Path, indices: Any, values: Any, message: str
) -> None:
    tensors = pair(Q0) | rows(EMBED, np.ascontiguousarray(values))
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path, tensors, trainable_token_indices=indices)
    assert caught.value.hint


def embedding(module: str, rank: int = 4, size: tuple[int, int] = (9, 6)) -> dict[str, Any]:
    rng = np.random.default_rng(rank)
    return {
        f"{PREFIX}{module}.lora_embedding_A": rng.normal(size=(rank, size[0])),
        f"{PREFIX}{module}.lora_embedding_B": rng.normal(size=(size[1], rank)),
    }


def test_a_tied_layer_needs_no_target(tmp_path: Path) -> None:
    tensors = embedding(EMBED) | pair(HEAD, features=(6, 9))
    fields = {"target_modules": ["embed_tokens"]}
    adapter = load(tmp_path / "tied", tensors, **fields, ensure_weight_tying=True)
    assert set(adapter.shapes) == {EMBED, HEAD}
    with pytest.raises(AdapterError, match="'lm_head' has tensors but is not a target"):
        load(tmp_path / "not", tensors, **fields)
    other = embedding(EMBED) | pair(HEAD, features=(6, 8))
    with pytest.raises(AdapterError, match="'lm_head' has tensors but is not a target"):
        load(tmp_path / "other", other, **fields, ensure_weight_tying=True)


def test_a_tied_table_needs_no_entry_in_modules_to_save(tmp_path: Path) -> None:
    table = np.ones((9, 6), np.float32)
    tensors = pair(Q0) | {f"{PREFIX}{module}.weight": table for module in (EMBED, HEAD)}
    fields = {"modules_to_save": ["embed_tokens"]}
    adapter = load(tmp_path / "tied", tensors, **fields, ensure_weight_tying=True)
    assert set(adapter.parameters) == {f"{EMBED}.weight", f"{HEAD}.weight"}
    with pytest.raises(UnsupportedAdapterError, match="does not say that it replaces"):
        load(tmp_path / "not", tensors, **fields)


def attention() -> dict[str, Any]:
    return pair("a.mha", features=(6, 18)) | pair("a.mha.base_layer.out_proj", features=(6, 6))


def test_the_output_projection_of_an_attention_counts_twice(tmp_path: Path) -> None:
    fields = {"target_modules": ["mha"], "alpha_pattern": {"mha": 6}}
    adapter = load(tmp_path, attention(), **fields)
    scales = {module: shape.scale for module, shape in adapter.shapes.items()}
    assert scales == {"a.mha": 1.5, "a.mha.out_proj": 3.0}
    assert low_rank(adapter, "a.mha.out_proj").s.tolist() == [3.0] * 4
    (finding,) = adapter.findings
    assert (finding.rule, finding.severity) == ("adapter/out-proj-twice", Severity.WARNING)
    assert "the adapter's peft_version is not given" in finding.message


@pytest.mark.parametrize("field", ["lora_bias", "use_dora", "use_qalora"])
def test_attentions_take_plain_lora_only(tmp_path: Path, field: str) -> None:
    tensors = attention()
    for module, out in (("a.mha", 18), ("a.mha.base_layer.out_proj", 6)):
        if field == "lora_bias":
            tensors[f"{PREFIX}{module}.lora_B.bias"] = np.ones(out)
        if field == "use_dora":
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = np.ones(out)
    message = f"{field} is set, and the module belongs to a MultiheadAttention"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, tensors, target_modules=["mha"], **{field: True})
    assert caught.value.where.module == "a.mha"


def test_an_attention_is_not_adapted_with_transposed_weights(tmp_path: Path) -> None:
    message = "fan_in_fan_out is set, and the module belongs to a MultiheadAttention: PEFT adds"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, attention(), target_modules=["mha"], fan_in_fan_out=True)
    assert caught.value.where.module == "a.mha"
    assert caught.value.hint
    assert "fan_in_fan_out = false" in caught.value.hint


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_replace_those_of_the_base(tmp_path: Path, bias: str) -> None:
    new = np.ones(5, np.float32)
    tensors = pair(Q0) | {f"{PREFIX}{Q0}.base_layer.bias": new}
    assert list(load(tmp_path / "own", tensors, bias=bias).parameters) == [f"{Q0}.bias"]
    tensors[f"{PREFIX}model.norm.bias"] = new
    if bias == "all":
        adapter = load(tmp_path / "other", tensors, bias=bias)
        assert set(adapter.parameters) == {f"{Q0}.bias", "model.norm.bias"}
    else:
        with pytest.raises(UnsupportedAdapterError, match="does not say that it replaces"):
            load(tmp_path / "other", tensors, bias=bias)


def test_a_bias_of_another_length_is_an_error(tmp_path: Path) -> None:
    tensors = pair(Q0) | {f"{PREFIX}{Q0}.lora_B.bias": np.ones(4)}
    with pytest.raises(AdapterError, match=r"lora_B.bias has shape \[4\], expected \[5\]"):
        load(tmp_path, tensors, lora_bias=True)


def test_state_of_training_alone_is_left_out(tmp_path: Path) -> None:
    state = {
        f"{PREFIX}{Q0}.lora_monteclora_sampler.std_prior": np.ones(4),
        f"{PREFIX}{Q0}.lora_monteclora_sampler.expert_weights": np.ones(8),
    }
    adapter = load(tmp_path / "a", pair(Q0) | state, monteclora_config={"num_samples": 8})
    assert (list(adapter.shapes), dict(adapter.parameters)) == ([Q0], {})
    state = {f"{PREFIX}{Q0}.lora_velora_embed": np.ones(4)}
    adapter = load(tmp_path / "b", pair(Q0) | state, velora_config={"num_groups": 4})
    assert (list(adapter.shapes), dict(adapter.parameters)) == ([Q0], {})


NOTICES: dict[str, tuple[dict[str, Any], Severity, str]] = {
    "adapter/layer-replication": (
        {"layer_replication": [[0, 2], [1, 2]]},
        Severity.NOTE,
        "layer_replication is [[0, 2], [1, 2]]: the modules are counted in the stack of repeated",
    ),
    "adapter/invocation-tokens": (
        {"alora_invocation_tokens": [3, 5]},
        Severity.NOTE,
        "active from the start of the last occurrence of the tokens [3, 5] on",
    ),
    "adapter/quantized-base": (
        {"base_model_name_or_path": "some/model-3b-bnb-4bit"},
        Severity.NOTE,
        "base_model_name_or_path is 'some/model-3b-bnb-4bit': the adapter was trained on a quant",
    ),
    "adapter/rslora-of-a-mix": (
        {"use_rslora": True, "lora_alpha": 4},
        Severity.WARNING,
        "use_rslora is set, lora_alpha equals r (4) and there are no patterns",
    ),
}


@pytest.mark.parametrize("rule", NOTICES)
def test_what_the_graph_or_the_application_must_do_is_a_finding(tmp_path: Path, rule: str) -> None:
    fields, severity, message = NOTICES[rule]
    adapter = load(tmp_path, pair(Q0), **fields)
    (finding,) = adapter.findings
    assert (finding.rule, finding.severity) == (rule, severity)
    assert message in finding.message
    assert finding.hint
    assert finding.where.field in fields
    assert finding.where.adapter == "tone"


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"use_rslora": True, "lora_alpha": 4, "alpha_pattern": {"q_proj": 3}},
        {"lora_alpha": 4},
        {"base_model_name_or_path": "some/int8ron-4bits-of-luck"},
        {"alora_invocation_tokens": []},
    ],
    ids=str,
)
def test_what_is_not_suspicious_gives_no_finding(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert load(tmp_path, pair(Q0), **fields).findings == ()


def test_an_activated_lora_is_gated(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0), alora_invocation_tokens=[3])
    assert adapter.shapes[Q0].gated
