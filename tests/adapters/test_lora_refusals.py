"""What a LORA adapter cannot be lowered with is refused by field or tensor, with a way out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.frame.fields import SELECTING, WITHOUT_EFFECT
from lora_quant.adapters.kinds.lora_refusals import NEUTRAL, REFUSED, USED
from lora_quant.errors import AdapterError, LoraQuantError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, config, load, pair
from tests.adapters.fixture_base import KINDS

FIELDS: dict[str, tuple[Any, str, str]] = {
    "arrow_config": ({"top_k": 1}, "arrow_config is set: Arrow chooses", "plain LoRA"),
    "loftq_config": ({"loftq_bits": 4}, "loftq_config is set: LoftQ", "export that base"),
    "field_of_tomorrow": ("x", "field_of_tomorrow is 'x', and what it does", "set it to null"),
    "another": (0, "another is 0, and what it does is not known", "set it to null"),
}


def test_every_field_that_peft_writes_is_accounted_for() -> None:
    written = json.loads((KINDS / "lora_plain" / "adapter_config.json").read_text("utf-8"))
    own = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias"}
    parts = (own, USED, NEUTRAL, REFUSED, SELECTING, WITHOUT_EFFECT)
    known = [field for part in parts for field in part]
    assert len(known) == len(set(known)), "a field is accounted for twice"
    assert set(written) <= set(known)


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
        (
            "pissa_niter_4",
            "is 'pissa_niter_4': it moved the base's weights before training, by a random "
            "decomposition that is not saved",
            "path_initial_model_for_weight_conversion",
        ),
        ("corda", "by statistics of data that are not saved", "path_initial_model_for_weight_conv"),
        ("CorDA", "by statistics of data that are not saved", "path_initial_model_for_weight_conv"),
        ("lora_ga", "by gradients that are not saved", "path_initial_model_for_weight_conversion"),
        ("loftq", "'loftq': LoftQ belongs to a base", "export that base"),
        (
            "xavier",
            "is 'xavier', expected true, false or one of eva, gaussian, mica, olora, orthogonal, "
            "pissa",
            "set it to true",
        ),
        (3, "is 3, expected true, false or one of", "set it to true"),
    ],
)
def test_initializations_that_are_not_saved_are_refused(
    tmp_path: Path, init: Any, message: str, hint: str
) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), init_lora_weights=init)
    assert caught.value.where.field == "init_lora_weights"
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True, "use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias"),
        ({"use_dora": True, "init_lora_weights": "mica"}, "use_dora"),
        ({"kasa_config": {"beta": 1}, "init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1], "init_lora_weights": "olora"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1], "lora_bias": True}, "lora_bias"),
        ({"lora_bias": True, "init_lora_weights": "pissa"}, "lora_bias"),
        ({"use_qalora": True, "lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["m.w"], "use_dora": True}, "target_parameters"),
        ({"target_parameters": ["m.w"], "lora_bias": True}, "target_parameters"),
        ({"target_parameters": ["m.w"], "init_lora_weights": "pissa"}, "target_parameters"),
        ({"velora_config": {"scale": 1}, "monteclora_config": {"a": 1}}, "monteclora_config"),
    ],
    ids=str,
)
def test_variants_that_peft_does_not_train_together_are_refused(
    tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    message = "which PEFT does not train together"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), **fields)
    assert caught.value.where.field == named


@pytest.mark.parametrize("bias", ["weights", 3, ["all"], True])
def test_a_bias_setting_that_peft_does_not_have_is_an_error(tmp_path: Path, bias: Any) -> None:
    with pytest.raises(AdapterError, match="expected one of none, all, lora_only") as caught:
        load(tmp_path, pair(Q0), bias=bias)
    assert caught.value.where.field == "bias"


_REPLACES = "the configuration does not say that it replaces one of the base"
KEYS: dict[str, tuple[str, str | None]] = {
    f"{PREFIX}{Q0}.lora_magnitude_vector": ("the magnitude of DoRA, but use_dora is not set", Q0),
    f"{PREFIX}{Q0}.lora_magnitude_vector.weight": ("the magnitude of DoRA, but use_dora is", Q0),
    f"{PREFIX}{Q0}.lora_B.bias": ("the bias of lora_B, but lora_bias is not set", Q0),
    f"{PREFIX}{Q0}.lora_diag": ("the diagonal of KaSA, but kasa_config is not set", Q0),
    f"{PREFIX}{Q0}.lora_E": ("the tensor is the singular values of AdaLoRA", None),
    f"{PREFIX}{Q0}.lora_A": ("name ends in lora_A, expected one of lora_A.weight", Q0),
    f"{PREFIX}{Q0}.lora_down.weight": ("the tensor is LoRA as kohya writes it", None),
    f"{PREFIX}{Q0}.lora_velora_embed": (_REPLACES, Q0),
    f"{PREFIX}{Q0}.base_layer.bias": (_REPLACES, Q0),
    f"{PREFIX}lm_head.base_layer.weight": (_REPLACES, "lm_head"),
    f"{PREFIX}classifier.weight": (_REPLACES, "classifier"),
    f"{PREFIX}{Q0}.alpha": (_REPLACES, Q0),
    f"{PREFIX}{Q0}.hada_w1_a": (_REPLACES, Q0),
    "base_model.classifier.weight": (_REPLACES, None),
    "odd": (_REPLACES, None),
}


@pytest.mark.parametrize("key", KEYS)
def test_tensors_that_nothing_accounts_for_are_refused(tmp_path: Path, key: str) -> None:
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
    | st.sampled_from(["", "q_proj", "(", "pissa", "none", "q_proj.weight", "all-linear"])
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["q_proj", "(", "a", "nblocks", "target_modules_bd_a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
NAMES = [
    *config(),
    *FIELDS,
    "alora_invocation_tokens",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_any_field_is_taken_or_refused_within_the_tree_of_errors(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    with contextlib.suppress(LoraQuantError):
        load(tmp_path, pair(Q0), **fields).lower(Q0)


SUFFIXES = st.sampled_from(
    [
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "lora_diag",
        "base_layer.lora_A.weight",
        "base_layer.lora_B.weight",
        "base_layer.out_proj.lora_A.weight",
        "base_layer.out_proj.lora_B.weight",
        "base_layer.bias",
        "token_adapter.trainable_tokens_delta",
    ]
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
SETTINGS = st.sampled_from(
    [
        {},
        {"use_dora": True},
        {"lora_bias": True},
        {"kasa_config": {"beta": 1}},
        {"use_qalora": True, "qalora_group_size": 2},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["q_proj"]}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"target_modules": None, "target_parameters": ["q_proj.a", "q_proj.b"]},
        {"target_modules": None, "target_parameters": ["q_proj.weight"]},
        {"trainable_token_indices": [1, 3]},
        {"ensure_weight_tying": True},
        {"bias": "all"},
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(SUFFIXES, SHAPES, min_size=1, max_size=5),
    fields=SETTINGS,
    rank=st.integers(1, 4),
)
def test_any_shapes_are_taken_or_refused_within_the_tree_of_errors(
    shapes: dict[str, tuple[int, ...]], fields: dict[str, Any], rank: int, tmp_path: Path
) -> None:
    tensors = {
        f"{PREFIX}{Q0}.{suffix}": np.ones(shape, np.float32) for suffix, shape in shapes.items()
    }
    with contextlib.suppress(LoraQuantError):
        adapter = load(tmp_path, tensors, **{"r": rank, **fields})
        for module in adapter.shapes:
            adapter.lower(module)
        for name in adapter.parameters:
            adapter.parameter(name)
