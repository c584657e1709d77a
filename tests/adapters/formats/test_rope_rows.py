from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.formats.rope_rows import (
    Heads,
    halves_from_pairs,
    heads_from,
    is_rotated,
    read_model_config,
)
from lora_quant.errors import AdapterError, ConfigError, Where


@given(heads=st.integers(1, 5), pairs=st.integers(1, 5))
def test_pairs_side_by_side_become_two_halves_in_every_head(heads: int, pairs: int) -> None:
    stored = [(h, p, half) for h in range(heads) for p in range(pairs) for half in range(2)]
    wanted = [(h, p, half) for h in range(heads) for half in range(2) for p in range(pairs)]
    order = halves_from_pairs(len(stored), heads, Where())
    assert [stored[row] for row in order] == wanted


@pytest.mark.parametrize(("rows", "heads"), [(9, 3), (10, 4), (2, 2), (16, 3)])
def test_rows_that_the_heads_do_not_divide_are_refused(rows: int, heads: int) -> None:
    with pytest.raises(AdapterError, match=f"has {rows} rows, expected {heads} heads of an even"):
        halves_from_pairs(rows, heads, Where(tensor="b"))


def test_only_queries_and_keys_are_rotated() -> None:
    heads = Heads(4, 2)
    counts = {"q_proj": 4, "k_proj": 2, "v_proj": None, "o_proj": None}
    for part, count in counts.items():
        module = f"model.layers.0.self_attn.{part}"
        assert heads.of(module) == count
        assert is_rotated(module) == (count is not None)


def test_the_heads_are_those_of_the_base_models_configuration(tmp_path: Path) -> None:
    assert read_model_config(tmp_path) is None
    file = tmp_path / "config.json"
    document = {"num_attention_heads": 8, "num_key_value_heads": 2}
    file.write_text(json.dumps(document), encoding="utf-8")
    assert read_model_config(tmp_path) == (file, document)
    assert heads_from(file, document) == Heads(8, 2)
    assert heads_from(file, {"num_attention_heads": 8}) == Heads(8, 8)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
def test_a_number_of_heads_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(AdapterError, match=r"num_attention_heads is .*, expected") as caught:
        heads_from(file, {"num_attention_heads": value})
    assert caught.value.where.field == "num_attention_heads"


def test_a_damaged_configuration_of_the_base_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(AdapterError, match="the file holds a list, expected an object"):
        read_model_config(tmp_path)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not JSON"):
        read_model_config(tmp_path)
