from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.declared import DeclaredParams
from lora_quant.errors import AdapterError
from tests.adapters.builders import Q0, RULES, V0, pair, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        pair(Q0) | pair(V0, rank=6),
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 6},
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rank": 4},
        {"rank": 6},
        {"alpha": 8},
        {"alpha": 8.0},
        {"target_modules": ("q_proj", "v_proj")},
        {"target_modules": (Q0, "model_layers_0_self_attn_v_proj_Conv")},
    ],
    ids=str,
)
def test_what_agrees_is_accepted(folder: Path, fields: dict[str, Any]) -> None:
    declared = DeclaredParams("tone", **fields)
    assert load_adapter("tone", folder, RULES, declared=declared).rank == 6


@pytest.mark.parametrize(
    ("fields", "message", "field"),
    [
        ({"rank": 8}, "rank is declared as 8, expected 4 or 6 as in the checkpoint", "rank"),
        ({"alpha": 16.0}, "alpha is declared as 16, expected 8 as in the checkpoint", "alpha"),
        (
            {"target_modules": ("q_proj", "v_proj", "k_proj")},
            "target_modules declares 'k_proj', but the checkpoint has no such module",
            "target_modules",
        ),
        (
            {"target_modules": ("q_proj",)},
            f"the checkpoint adapts '{V0}', which target_modules does not declare",
            "target_modules",
        ),
    ],
)
def test_what_contradicts_is_an_error(
    folder: Path, fields: dict[str, Any], message: str, field: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter("tone", folder, RULES, declared=DeclaredParams("tone", **fields))
    assert (caught.value.where.field, caught.value.where.adapter) == (field, "tone")


def test_an_alpha_that_the_checkpoint_does_not_say_cannot_be_declared(tmp_path: Path) -> None:
    folder = write(tmp_path, pair(Q0), lora_alpha=None, r=None, rank_pattern={"q_proj": 4})
    assert load_adapter("tone", folder, RULES, declared=DeclaredParams("tone", rank=4)).rank == 4
    with pytest.raises(AdapterError, match="but the checkpoint does not say it"):
        load_adapter("tone", folder, RULES, declared=DeclaredParams("tone", alpha=8))
