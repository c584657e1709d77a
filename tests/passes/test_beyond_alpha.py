"""What does not follow the strength at run time: records of the pack, and notes of the build."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.findings import Severity
from tests.mixes import graph_of, mixed, use_case_of

BIAS = "slots/beyond-alpha"
ROUTED = "adapter/routed-mean"


@pytest.mark.parametrize(
    ("case", "base", "parts"),
    [
        ("lora_plain", "llama", ()),
        ("lora_bias", "llama", ("c",)),
        ("lora_dora", "llama", ("g",)),
        ("ia3_feedforward", "llama", ("g", "h")),
        ("lora_modules_to_save", "llama", ("parameters",)),
        ("trainable_tokens", "llama", ("parameters",)),
    ],
)
def test_a_slot_tells_what_the_strength_does_not_reach(
    case: str, base: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    result = mixed(tmp_path / "pack", graph_of(base), {"it": {case: 1.0}})
    (slot,) = use_case_of(result, "it").slots
    assert slot.beyond_alpha == parts
    assert [f.rule for f in result.findings if f.rule == BIAS] == [BIAS] * ("c" in parts)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_strength_of_a_bias_is_noted_once_per_adapter(strength: float, tmp_path: Path) -> None:
    given = {"one": {"lora_bias": strength}, "two": {"lora_bias": 1.0, "lora_plain": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, alpha_name="strength")
    (note,) = [f for f in result.findings if f.rule == BIAS]
    assert note.severity is Severity.NOTE
    assert note.message == (
        "the trained bias of adapter 'lora_bias' is in c at the strength of the use case; strength "
        "does not change it at run time"
    )
    assert note.where.adapter == "lora_bias"


def test_a_merged_build_has_no_strength_that_something_could_follow(tmp_path: Path) -> None:
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {"lora_bias": 0.5}}, merge="it")
    (slot,) = use_case_of(result, "it").slots
    assert slot.beyond_alpha == ()
    assert [f for f in result.findings if f.rule == BIAS] == []
    assert result.manifest.merged_modules == 2


def test_the_mean_of_a_router_is_noted_once_per_adapter(tmp_path: Path) -> None:
    given = {"one": {"lily": 1.0}, "two": {"lily": 0.5}, "three": {"lora_plain": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given)
    (note,) = [f for f in result.findings if f.rule == ROUTED]
    assert note.severity is Severity.NOTE
    assert note.where.adapter == "lily"
    assert "the mean over all tokens that are fed, padding included" in note.message
