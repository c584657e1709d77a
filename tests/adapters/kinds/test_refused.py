"""Kinds that are refused: each says why, and what to do instead."""

from __future__ import annotations

import numpy as np
import pytest

from lora_quant.adapters.kinds import refused
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import CONFIG, checkpoint

RULES = {
    "XLORA": (refused.XloraRule(), "mixes several adapters for every token", "field `adapters`"),
    "SHADOW": (refused.ShadowRule(), "a second network with layers of its own", "as one graph"),
    "PSOFT": (refused.PsoftRule(), "whose signs depend on the machine", "merge_and_unload"),
    "ADAMSS": (refused.AdamssRule(), "was found by clustering in training", "merge_and_unload"),
    "ADAPTION_PROMPT": (refused.AdaptionPromptRule(), "gated attention", "PREFIX_TUNING"),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_kind_is_refused_with_its_own_reason_and_way_out(kind: str) -> None:
    rule, reason, way_out = RULES[kind]
    assert rule.kind == kind
    with pytest.raises(UnsupportedAdapterError, match=f"{kind} is not compiled: ") as caught:
        rule.describe(checkpoint(kind, {"any": np.ones(2)}, any_field=1))
    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert way_out in caught.value.hint
    assert (caught.value.where.file, caught.value.where.field) == (CONFIG, "peft_type")


def test_the_reasons_differ() -> None:
    assert len({rule.refusal for rule, _, _ in RULES.values()}) == len(RULES)


def test_nothing_of_them_is_lowered() -> None:
    rule, _, _ = RULES["XLORA"]
    held = checkpoint("XLORA", {})
    with pytest.raises(
        AdapterError, match="XLORA does not adapt the module 'q_proj', or any other"
    ):
        rule.lower(held, ModuleShape("q_proj", 1, 2, 3), None)
    assert rule.default_scale(held) == 1.0
