from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.patterns import Matched, match_patterns
from lora_quant.errors import AdapterError
from lora_quant.findings import Severity

CONFIG = PeftConfig(Path("adapter_config.json"), "LORA", MappingProxyType({}))
Q0 = "model.layers.0.q_proj"
Q1 = "model.layers.1.q_proj"


@pytest.mark.parametrize(
    ("key", "matches"),
    [
        ("q_proj", True),
        ("layers.0.q_proj", True),
        (Q0, True),
        ("^" + Q0, True),
        (r"layers\.[0-3]\..*", True),
        ("k_proj|q_proj", True),
        ("proj", False),
        ("layers.0", False),
        ("ayers.0.q_proj", False),
        ("layers.1.q_proj", False),
        ("^layers.0.q_proj", False),
    ],
)
def test_a_key_matches_the_whole_path_or_its_last_parts(key: str, matches: bool) -> None:
    values, _ = match_patterns(CONFIG, "alpha_pattern", {key: 3}, 1, [Q0])
    assert values[Q0] == (Matched(3, key) if matches else Matched(1, None))


def test_the_first_key_in_file_order_wins_and_the_difference_is_a_finding() -> None:
    patterns = {"layers.1.q_proj": 20, "q_proj": 3}
    values, findings = match_patterns(CONFIG, "alpha_pattern", patterns, 1, [Q0, Q1])
    assert (values[Q0].value, values[Q1].value) == (3, 20)
    (finding,) = findings
    assert finding.rule == "adapter/competing-alpha-pattern"
    assert finding.severity is Severity.WARNING
    assert "several keys of alpha_pattern match module 'model.layers.1.q_proj'" in finding.message
    assert "'layers.1.q_proj': 20, 'q_proj': 3" in finding.message

    swapped = dict(reversed(patterns.items()))
    values, _ = match_patterns(CONFIG, "alpha_pattern", swapped, 1, [Q0, Q1])
    assert (values[Q0].value, values[Q1].value) == (3, 3)


def test_keys_that_agree_do_not_compete() -> None:
    _, findings = match_patterns(CONFIG, "rank_pattern", {"q_proj": 3, Q0: 3}, 1, [Q0])
    assert findings == ()


def test_a_key_without_a_module_is_a_finding() -> None:
    _, findings = match_patterns(CONFIG, "rank_pattern", {"q_prj": 3}, 1, [Q0])
    (finding,) = findings
    assert finding.rule == "adapter/unused-rank-pattern"
    assert finding.message == "the key 'q_prj' of rank_pattern matches no module of the checkpoint"


def test_a_key_that_is_no_expression_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"'q_proj\(' in rank_pattern is not a regular") as got:
        match_patterns(CONFIG, "rank_pattern", {"q_proj(": 3}, 1, [Q0])
    assert got.value.where.field == "rank_pattern"
