from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import AdapterError


def config(**fields: Any) -> PeftConfig:
    return PeftConfig(Path("adapter_config.json"), "LORA", MappingProxyType(fields))


def test_absent_and_null_fields_take_the_default() -> None:
    for given in (config(), config(r=None, lora_alpha=None, use_rslora=None, rank_pattern=None)):
        assert given.positive("r", 8) == 8
        assert given.number("lora_alpha", 8.0) == 8.0
        assert given.flag("use_rslora") is False
        assert given.positive_patterns("rank_pattern") == {}
        assert given.names("target_modules") is None
        assert given.indices("layers_to_transform") == ()


def test_values_of_the_right_type_are_taken() -> None:
    given = config(r=3, lora_alpha=1.5, use_rslora=True, alpha_pattern={"b": 2, "a": 0.5}, l=4)
    assert given.positive("r", 8) == 3
    assert given.number("lora_alpha", 8.0) == 1.5
    assert given.flag("use_rslora") is True
    assert list(given.number_patterns("alpha_pattern")) == ["b", "a"]
    assert given.indices("l") == (4,)


@pytest.mark.parametrize("value", [0, -1, 4.0, True, "4", 1e9, [4]])
def test_a_rank_is_a_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(AdapterError, match=r"r is .*, expected a whole number of at least 1"):
        config(r=value).positive("r", 8)


@pytest.mark.parametrize("value", [True, "16", [16], 10**400, float("inf"), float("nan")])
def test_an_alpha_is_a_finite_number(value: Any) -> None:
    with pytest.raises(AdapterError, match=r"lora_alpha is .*, expected a finite number") as caught:
        config(lora_alpha=value).number("lora_alpha", 8)
    assert caught.value.where.field == "lora_alpha"


def test_a_flag_is_a_bool() -> None:
    with pytest.raises(AdapterError, match="use_rslora is 'true', expected true or false"):
        config(use_rslora="true").flag("use_rslora")


def test_patterns_are_an_object_of_numbers() -> None:
    with pytest.raises(AdapterError, match=r"rank_pattern is \[4\], expected an object"):
        config(rank_pattern=[4]).positive_patterns("rank_pattern")
    with pytest.raises(AdapterError, match=r"rank_pattern\['q'\] is \[True\], expected a whole"):
        config(rank_pattern={"q": [True]}).positive_patterns("rank_pattern")


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_neutral_values(value: Any) -> None:
    assert config(x=value).is_neutral("x")


@pytest.mark.parametrize("value", [0, "", True, 0.0, [0], "none"])
def test_values_that_are_not_neutral(value: Any) -> None:
    assert not config(x=value).is_neutral("x")
