"""Kinds that PEFT cannot merge, against its outputs: modules that depend on the input, and prompts.

A module's output is compared where PEFT's answer is float32. A product of n terms in float32 is off
by at most n * 2**-24 times the sum of their absolute values, and so is the sum of two products.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from lora_quant.adapters.lowered import Lowered, Need
from tests.adapters.fixture_base import KINDS
from tests.adapters.test_conformance import CASES, EXACT, HALF_UNIT, cases, opened

Array = NDArray[np.float64]
ROUTED = {"BEFT", "LILY", "POLY"}


def forward_only(case: str) -> bool:
    """Whether PEFT could not merge the case, so that only outputs tell."""
    with safe_open(KINDS / case / "expected.safetensors", framework="np") as file:
        names = list(file.keys())
    return any(n.startswith("y:") for n in names) and not any(n.startswith("delta:") for n in names)


def output(x: Array, weight: Array, bias: Array, lowered: Lowered) -> Array:
    """y of a linear module; the router sees all tokens at once."""
    g = 1.0 if lowered.g is None else lowered.g
    h = 1.0 if lowered.h is None else lowered.h
    y = g * ((h * x) @ weight.T + bias)
    if lowered.c is not None:
        y = y + lowered.c
    if lowered.rank:
        hidden = x @ lowered.A.astype(np.float64).T
        s = lowered.s
        if lowered.router is not None:
            logits = hidden @ lowered.router.T
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            shares = powers / powers.sum(axis=-1, keepdims=True)
            mean = shares.reshape(-1, len(lowered.router)).mean(axis=0)
            s = s * np.repeat(mean, lowered.rank // len(mean))
        y = y + (s * hidden) @ lowered.B.astype(np.float64).T
    return y


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in cases("exact", "extended", "gate")
        if CASES[c]["kind"] in ROUTED and forward_only(c)
    ],
)
def test_the_output_of_a_module_is_pefts(case: str) -> None:
    adapter, base, expected = opened(case)
    probed = [key.partition(":")[2] for key in expected if key.startswith("y:")]
    assert probed
    for module in probed:
        shape = adapter.shapes[module]
        lowered = adapter.lower(module, None if shape.need is Need.NOTHING else base)
        assert isinstance(lowered, Lowered)
        x, theirs = expected[f"x:{module}"], expected[f"y:{module}"]
        weight = base.weight(module).astype(np.float64)
        ours = output(x, weight, base.bias(module), lowered)
        moved = np.abs(theirs - expected[f"y_base:{module}"]).max()
        terms = weight.shape[1] + 2
        rounding = terms * HALF_UNIT * (np.abs(x) @ np.abs(weight).T + np.abs(theirs))
        assert moved > 1e-3, "the case shows nothing"
        assert (np.abs(ours - theirs) <= EXACT * moved + rounding).all(), module


@pytest.mark.parametrize("case", cases("prompt"))
def test_the_prompt_is_pefts(case: str) -> None:
    adapter, _, expected = opened(case)
    shape = adapter.description.prompt
    assert shape is not None
    theirs = expected[shape.form]
    ours = adapter.prompt()
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == shape.shape
    # stored values are passed on; a product of two ranks is rounded twice, and then once more
    limit = 4 * HALF_UNIT * np.abs(theirs).max() if "task_id" in CASES[case] else 0.0
    assert np.abs(ours - theirs).max() <= limit
