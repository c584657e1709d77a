from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.formats.synthesis import Strength, assumed_alpha, make_config
from lora_quant.adapters.frame.patterns import match_patterns

FILE = Path("style.safetensors")
# short levels out of few letters, with what is special in an expression: paths end in each other
PATHS = st.lists(st.sampled_from(["a", "b", "a+", "0"]), min_size=1, max_size=4).map(".".join)


@given(
    strengths=st.dictionaries(
        PATHS,
        st.builds(Strength, st.integers(1, 3), st.sampled_from([0.5, 1.0, 2.0])),
        min_size=1,
        max_size=8,
    )
)
def test_every_module_finds_its_own_rank_and_alpha_and_no_other(
    strengths: dict[str, Strength],
) -> None:
    config = make_config(FILE, "LORA", strengths)
    ranks, rank_findings = match_patterns(
        config,
        "rank_pattern",
        config.positive_patterns("rank_pattern"),
        config.positive("r", 8),
        strengths,
    )
    alphas, alpha_findings = match_patterns(
        config,
        "alpha_pattern",
        config.number_patterns("alpha_pattern"),
        config.number("lora_alpha", 8),
        strengths,
    )
    for module, strength in strengths.items():
        assert (ranks[module].value, alphas[module].value) == (strength.rank, strength.alpha)
    assert rank_findings == alpha_findings == ()


def test_the_commonest_values_need_no_pattern() -> None:
    strengths = {"a.x": Strength(4, 8.0), "b.x": Strength(4, 8.0), "c.x": Strength(2, 8.0)}
    config = make_config(FILE, "LOHA", strengths, alpha_field="alpha", use_dora=True)
    assert config.file == FILE
    assert dict(config.fields) == {
        "peft_type": "LOHA",
        "target_modules": ["a.x", "b.x", "c.x"],
        "r": 4,
        "alpha": 8.0,
        "rank_pattern": {re.escape("c.x"): 2},
        "alpha_pattern": {},
        "use_dora": True,
    }


def test_assumed_alphas_are_one_note() -> None:
    assert assumed_alpha(FILE, [], "diffusers") == ()
    (finding,) = assumed_alpha(FILE, ["b", "a"], "diffusers")
    assert finding.message == (
        "2 modules have no alpha, so their scale is 1, as diffusers does: 'a', 'b'"
    )
    assert finding.where.file == FILE
