"""Plain LoRA that PEFT wrote, against the deltas that PEFT computed after loading them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.lowered import Lowered
from tests.adapters.builders import RULES, Array, low_rank

FIXTURES = Path(__file__).parents[1] / "fixtures" / "peft"
CASES: list[str] = json.loads((FIXTURES / "cases.json").read_text("utf-8"))

# Half a unit in the last place of float32, in which PEFT computes its deltas.
ROUNDING = 2.0**-24


def delta(lowered: Lowered) -> Array:
    """B diag(s) A in float64, in the layout of a base weight `[out, in, *kernel]`."""
    return _product(lowered.B.astype(np.float64), lowered.s, lowered.A.astype(np.float64))


def tolerance(lowered: Lowered) -> Array:
    """How far PEFT's float32 result may be from the exact one, element by element.

    A sum of r products, in any order, is off by at most r roundings of sum |b| |a|; the scale is
    rounded once and so is its product. Our float64 side adds nothing that counts beside that.
    """
    B, A = abs(lowered.B.astype(np.float64)), abs(lowered.A.astype(np.float64))
    return (lowered.rank + 2) * ROUNDING * _product(B, abs(lowered.s), A)


def _product(B: Array, s: Array, A: Array) -> Array:
    product: Array = np.einsum("or,r,ri...->oi...", B, s, A)
    return product


def test_the_fixtures_are_there() -> None:
    assert CASES
    assert {path.name for path in FIXTURES.iterdir() if path.is_dir()} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_delta_is_pefts(case: str) -> None:
    path = FIXTURES / case / "delta.safetensors"
    expected = load_file(path)
    with safe_open(path, "np") as file:
        transposed = file.metadata()["layout"] == "in,out"
    adapter = load_adapter(case, FIXTURES / case, RULES)
    assert set(adapter.shapes) == set(expected)
    for module, theirs in expected.items():
        lowered = low_rank(adapter, module)
        theirs = theirs.T if transposed else theirs
        assert delta(lowered).shape == theirs.shape
        assert (np.abs(delta(lowered) - theirs) <= tolerance(lowered)).all(), module
        # and so small that a wrong scale, rank or order could not hide in it
        assert tolerance(lowered).max() <= 5e-6 * np.abs(theirs).max()


def test_only_competing_patterns_are_reported() -> None:
    findings = {
        case: [f.rule for f in load_adapter(case, FIXTURES / case, RULES).findings]
        for case in CASES
    }
    assert {case: rules for case, rules in findings.items() if rules} == {
        "patterns": ["adapter/competing-alpha-pattern"]
    }
