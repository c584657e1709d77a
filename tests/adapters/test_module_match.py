from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.module_match import (
    Targets,
    check_targets,
    names_module,
    read_targets,
)
from lora_quant.errors import AdapterError
from lora_quant.findings import Severity

Q = "model.layers.{}.self_attn.q_proj"


def config(**fields: Any) -> PeftConfig:
    return PeftConfig(Path("adapter_config.json"), "LORA", MappingProxyType(fields))


def targets(**fields: Any) -> Targets:
    return read_targets(config(**fields))


@pytest.mark.parametrize(
    ("fields", "module", "expected"),
    [
        ({"target_modules": ["q_proj"]}, Q.format(0), True),
        ({"target_modules": ["q_proj"]}, "q_proj", True),
        ({"target_modules": ["proj"]}, Q.format(0), False),
        ({"target_modules": [Q.format(0)]}, Q.format(0), True),
        ({"target_modules": "q_proj"}, Q.format(0), False),
        ({"target_modules": r".*\.q_proj"}, Q.format(0), True),
        ({"target_modules": r".*\.q_pro"}, Q.format(0), False),
        ({"target_modules": "all-linear"}, "anything", True),
        ({"target_modules": "All-Linear"}, "anything", True),
        ({"target_modules": None}, "anything", True),
        ({"target_modules": []}, "anything", False),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, Q.format(0), False),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, Q.format(0), False),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, Q.format(1), True),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, Q.format(1), True),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}, Q.format(1), False),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, "q_proj.x.q_proj", False),
        # a whole path is not filtered by layer
        ({"target_modules": [Q.format(0)], "layers_to_transform": [1]}, Q.format(0), True),
        # the first numbered part counts, not the expert's
        ({"target_modules": ["w"], "layers_to_transform": [3]}, "m.layers.3.experts.0.w", True),
        ({"target_modules": ["w"], "layers_to_transform": [0]}, "m.layers.3.experts.0.w", False),
    ],
)
def test_who_is_a_target(fields: dict[str, Any], module: str, expected: bool) -> None:
    assert targets(**fields).matches(module) is expected


def test_layers_pattern_says_which_numbers_count() -> None:
    chosen = targets(target_modules=["w"], layers_to_transform=[3], layers_pattern=["h", "experts"])
    assert chosen.matches("m.layers.0.experts.3.w")
    assert chosen.matches("h.3.w")
    assert not chosen.matches("m.layers.3.w")


@pytest.mark.parametrize(
    ("fields", "message", "field"),
    [
        ({"target_modules": "("}, r"'\(' in target_modules is not a regular", "target_modules"),
        ({"target_modules": "a{99999999999999}"}, "not a regular expr", "target_modules"),
        (
            {"target_modules": ["q"], "exclude_modules": "["},
            "in exclude_modules is not a regular",
            "exclude_modules",
        ),
        (
            {"target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": "(?P<index>a)"},
            "in layers_pattern is not a regular",
            "layers_pattern",
        ),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "without layers_to", "layers_pattern"),
        (
            {"target_modules": "q", "layers_to_transform": [1]},
            "beside a target_modules that is a text",
            "layers_to_transform",
        ),
        ({"target_modules": 3}, "target_modules is 3, expected a text or a list", "target_modules"),
        ({"target_modules": ["q", None]}, "expected a text or a list of texts", "target_modules"),
        (
            {"target_modules": ["q"], "layers_to_transform": [True]},
            "expected a whole number from 0",
            "layers_to_transform",
        ),
    ],
)
def test_fields_that_cannot_be_taken(fields: dict[str, Any], message: str, field: str) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        targets(**fields)
    assert caught.value.where.field == field


@pytest.mark.parametrize(
    ("fields", "module", "message", "field"),
    [
        (
            {"target_modules": ["v_proj"]},
            Q.format(0),
            "has tensors but is not a target: target_modules does not name it",
            "target_modules",
        ),
        (
            {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
            Q.format(0),
            "exclude_modules excludes it",
            "exclude_modules",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
            Q.format(0),
            r"it is in layer 0, layers_to_transform is \(1, 2\)",
            "layers_to_transform",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1]},
            "lm.q_proj",
            "it is in no numbered layer",
            "layers_to_transform",
        ),
    ],
)
def test_a_module_that_the_config_does_not_target_is_an_error(
    fields: dict[str, Any], module: str, message: str, field: str
) -> None:
    given = config(**fields)
    with pytest.raises(AdapterError, match=message) as caught:
        check_targets(read_targets(given), given, [module])
    assert caught.value.where.field == field
    assert caught.value.where.module == module


def test_what_is_named_but_has_no_tensors_is_a_warning() -> None:
    given = config(target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 5])
    found = check_targets(read_targets(given), given, [Q.format(0)])
    assert [f.message for f in found] == [
        "target 'v_proj' of target_modules has no tensors in the checkpoint",
        "layer 5 of layers_to_transform has no tensors in the checkpoint",
    ]
    assert {f.rule for f in found} == {"adapter/target-without-tensors"}
    assert {f.severity for f in found} == {Severity.WARNING}


def test_without_target_modules_completeness_is_not_known() -> None:
    given = config()
    (found,) = check_targets(read_targets(given), given, [Q.format(0)])
    assert (found.rule, found.severity) == ("adapter/targets-not-given", Severity.NOTE)


def test_joined_names_of_prepared_models_name_a_module() -> None:
    module = Q.format(0)
    assert names_module("model_layers_0_self_attn_q_proj_Conv", module)
    assert names_module("model_layers_0_self_attn_q_proj", module)
    assert names_module("q_proj", module)
    assert not names_module("model_layers_1_self_attn_q_proj_Conv", module)
    assert not names_module("proj", module)
