from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.declared import DeclaredParams, check_declared
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.lowered import ModuleShape
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


CONFIG = PeftConfig(Path("adapter_config.json"), "X", {"alpha": 4.0})


def test_alpha_may_have_the_name_of_another_kind() -> None:
    shapes = {"m": ModuleShape("m", 2, 3, 4)}
    check_declared(DeclaredParams("tone", alpha=4.0), CONFIG, shapes)
    with pytest.raises(AdapterError, match="alpha is declared as 5, expected 4 as in the chec"):
        check_declared(DeclaredParams("tone", alpha=5.0), CONFIG, shapes)


@pytest.mark.parametrize("shapes", [{}, {"m": ModuleShape("m", 0, 3, 4)}], ids=["none", "no rank"])
def test_a_rank_of_what_has_none_cannot_be_declared(shapes: dict[str, ModuleShape]) -> None:
    check_declared(DeclaredParams("tone"), CONFIG, shapes)
    message = "rank is declared as 4, but the checkpoint has no low rank"
    with pytest.raises(AdapterError, match=message) as caught:
        check_declared(DeclaredParams("tone", rank=4), CONFIG, shapes)
    assert caught.value.where.field == "r"


@pytest.mark.parametrize(
    ("modules", "declared"),
    [
        (("mlp.experts.down_proj.0", "mlp.experts.down_proj.1"), ("experts.down_proj",)),
        (("mlp.experts.down_proj.0", "mlp.experts.down_proj.1"), ("experts",)),
        (("mlp.experts.down_proj.0", "mlp.experts.down_proj.1"), ("down_proj.0", "down_proj.1")),
        (("a.mha", "a.mha.out_proj"), ("mha",)),
    ],
    ids=str,
)
def test_a_part_of_a_layer_is_declared_by_the_layer(
    modules: tuple[str, ...], declared: tuple[str, ...]
) -> None:
    shapes = {module: ModuleShape(module, 2, 3, 4) for module in modules}
    check_declared(DeclaredParams("tone", target_modules=declared), CONFIG, shapes)


def test_an_output_projection_of_no_attention_is_declared_by_its_own_name() -> None:
    shapes = {"a.mha.out_proj": ModuleShape("a.mha.out_proj", 2, 3, 4)}
    with pytest.raises(AdapterError, match="target_modules declares 'mha', but the checkpoint"):
        check_declared(DeclaredParams("tone", target_modules=("mha",)), CONFIG, shapes)


def test_an_alpha_that_the_checkpoint_does_not_say_cannot_be_declared(tmp_path: Path) -> None:
    folder = write(tmp_path, pair(Q0), lora_alpha=None, r=None, rank_pattern={"q_proj": 4})
    assert load_adapter("tone", folder, RULES, declared=DeclaredParams("tone", rank=4)).rank == 4
    with pytest.raises(AdapterError, match="but the checkpoint does not say it"):
        load_adapter("tone", folder, RULES, declared=DeclaredParams("tone", alpha=8))
