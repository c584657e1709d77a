"""What is not plain LoRA is refused by its field or its tensor, with a way out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.errors import LoraQuantError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, config, load, pair

FIELDS: dict[str, tuple[Any, str, str]] = {
    "use_dora": (True, "use_dora is set: DoRA also scales", "merge_and_unload"),
    "lora_bias": (True, "lora_bias is set: the bias of B", "lora_bias=False"),
    "bias": ("all", "bias is 'all': biases of the base are replaced", 'bias="none"'),
    "modules_to_save": (["lm_head"], "modules_to_save is set: whole modules", "export a base"),
    "target_parameters": (["w"], "target_parameters is set", "merge_and_unload"),
    "trainable_token_indices": ([1], "trainable_token_indices is set", "merge_and_unload"),
    "layer_replication": ([[0, 2]], "layer_replication is set", "replicated"),
    "alora_invocation_tokens": ([3], "alora_invocation_tokens is set: aLoRA", "plain LoRA"),
    "use_qalora": (True, "use_qalora is set: QA-LoRA", "plain LoRA"),
    "use_bdlora": ({"nblocks": 2}, "use_bdlora is set: BD-LoRA", "plain LoRA"),
    "arrow_config": ({"top_k": 1}, "arrow_config is set: Arrow", "plain LoRA"),
    "kasa_config": ({"beta": 1}, "kasa_config is set: KaSA", "merge_and_unload"),
    "velora_config": ({"scale": 1}, "velora_config is set: VeLoRA", "plain LoRA"),
    "monteclora_config": ({"n": 1}, "monteclora_config is set: MonteCLoRA", "plain LoRA"),
    "loftq_config": ({"loftq_bits": 4}, "loftq_config is set: LoftQ", "export that base"),
    "ensure_weight_tying": (True, "ensure_weight_tying is set", "target_modules"),
    "field_of_tomorrow": ("x", "field_of_tomorrow is 'x', and what it does", "set it to null"),
    "another": (0, "another is 0, and what it does is not known", "set it to null"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_ask_for_more_are_refused(tmp_path: Path, field: str) -> None:
    value, message, hint = FIELDS[field]
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), **{field: value})
    where = caught.value.where
    assert (where.field, where.adapter) == (field, "tone")
    assert where.file == tmp_path / "adapter_config.json"
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("init", "message", "hint"),
    [
        ("pissa", "'pissa': it moved the base's weights", "path_initial_model_for_weight_conv"),
        ("pissa_niter_4", "it moved the base's weights", "path_initial_model_for_weight_conv"),
        ("olora", "it moved the base's weights", "path_initial_model_for_weight_conversion"),
        ("OLoRA", "it moved the base's weights", "path_initial_model_for_weight_conversion"),
        ("corda", "it moved the base's weights", "path_initial_model_for_weight_conversion"),
        ("lora_ga", "it moved the base's weights", "path_initial_model_for_weight_conversion"),
        ("loftq", "'loftq': LoftQ belongs to a base", "export that base"),
        ("xavier", "is 'xavier', expected true, false or one of eva, gaussian", "set it to true"),
        (3, "is 3, expected true, false or one of", "set it to true"),
    ],
)
def test_initializations_that_change_the_base_are_refused(
    tmp_path: Path, init: Any, message: str, hint: str
) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), init_lora_weights=init)
    assert caught.value.where.field == "init_lora_weights"
    assert caught.value.hint is not None
    assert hint in caught.value.hint


KEYS: dict[str, tuple[str, str | None]] = {
    f"{PREFIX}{Q0}.lora_magnitude_vector": ("the tensor is the magnitude of DoRA", Q0),
    f"{PREFIX}{Q0}.lora_magnitude_vector.weight": ("the magnitude of DoRA", Q0),
    f"{PREFIX}{Q0}.lora_B.bias": ("the tensor is the bias of lora_B", Q0),
    f"{PREFIX}{Q0}.lora_diag": ("the diagonal of KaSA", Q0),
    f"{PREFIX}{Q0}.lora_E": ("the singular values of AdaLoRA", Q0),
    f"{PREFIX}{Q0}.lora_A": ("name ends in lora_A, expected lora_A.weight", Q0),
    f"{PREFIX}m.embed.lora_embedding_A": ("LoRA on an embedding", "m.embed"),
    f"{PREFIX}m.embed.lora_embedding_B.default": ("LoRA on an embedding", "m.embed"),
    f"{PREFIX}{Q0}.lora_down.weight": ("LoRA as kohya writes it", Q0),
    f"{PREFIX}m.attn.base_layer.out_proj.lora_A.weight": (
        "adapts a part of a wrapped module, as PEFT does for MultiheadAttention",
        "m.attn.base_layer.out_proj",
    ),
    f"{PREFIX}{Q0}.base_layer.bias": ("it would replace a tensor of the base", None),
    f"{PREFIX}lm_head.base_layer.weight": ("the whole weight of the base's module", "lm_head"),
    f"{PREFIX}classifier.weight": ("it would replace a tensor of the base", "classifier"),
    f"{PREFIX}{Q0}.alpha": ("it would replace a tensor of the base", Q0),
    f"{PREFIX}{Q0}.hada_w1_a": ("it would replace a tensor of the base", Q0),
    "base_model.classifier.weight": ("the tensor belongs to the whole model", None),
    "odd": ("it would replace a tensor of the base", None),
}


@pytest.mark.parametrize("key", KEYS)
def test_tensors_that_are_no_pair_are_refused(tmp_path: Path, key: str) -> None:
    message, module = KEYS[key]
    tensors = pair(Q0) | {key: np.ones((2, 2), np.float32)}
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, tensors)
    assert caught.value.where.tensor == key
    if module is not None:
        assert caught.value.where.module == module
    assert caught.value.hint is not None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "q_proj", "(", "pissa", "none"])
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["q_proj", "(", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fields=st.dictionaries(st.sampled_from([*config(), *FIELDS]), VALUES, max_size=3))
def test_any_field_is_taken_or_refused_within_the_tree_of_errors(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    with contextlib.suppress(LoraQuantError):
        load(tmp_path, pair(Q0), **fields).lower(Q0)
