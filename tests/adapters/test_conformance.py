"""Every adapter kind against PEFT: what the rules make of a file, and what PEFT makes of it.

The fixtures were written by PEFT (tests/fixtures/make_kinds.py). Their results are float32, so
that PEFT's own roundings are in the difference: a few units of 2**-24 for one product, more where
the base's weight is read, rotated or decomposed. The limits are those that the project promises.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.lowered import Dense, Lowered, Need
from lora_quant.errors import LoraQuantError, UnsupportedAdapterError
from tests.adapters.all_rules import all_rules
from tests.adapters.fixture_base import KINDS, FixtureBase, fixture_base

Array = NDArray[np.float64]
CASES: dict[str, dict[str, Any]] = {
    name: case
    for name, case in json.loads((KINDS / "cases.json").read_text("utf-8")).items()
    if not name.startswith("_")
}
RULES = all_rules()
EXACT = 1e-6
WITH_WEIGHT = 5e-6
HALF_UNIT = 2.0**-24


# What PEFT computes and the files alone do not tell: refused, with the reason.
OUT_OF_REACH = {
    "frod_seeded": "its basis has the signs of an eigendecomposition on one machine",
    "oft_conv": "PEFT's forward of a spatial kernel is not that of its merged weight",
    "unilora_gpt2": "the file names no module",
    "unilora_seeded": "the file names no module",
}


def cases(*classes: str) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if case["class"] in classes and name not in OUT_OF_REACH
    ]


def opened(case: str) -> tuple[Adapter, FixtureBase, dict[str, Array]]:
    facts = CASES[case]
    adapter = load_adapter(case, KINDS / case, RULES, task=facts.get("task_id"))
    expected = load_file(KINDS / case / "expected.safetensors")
    base = fixture_base(facts["base"], tuple(facts.get("module_order", ())))
    return adapter, base, {name: values.astype(np.float64) for name, values in expected.items()}


def merged(weight: Array, bias: Array, lowered: Lowered | Dense) -> tuple[Array, Array]:
    """W' and b' of y = g * (W (h * x) + b) + B (s * (A x)) + c."""
    if isinstance(lowered, Dense):
        return weight + lowered.delta, bias + (0 if lowered.c is None else lowered.c)
    delta = np.zeros_like(weight)
    if lowered.rank:  # without ranks, A and B need not know their sizes
        A = lowered.A.astype(np.float64).reshape(lowered.rank, *weight.shape[1:])
        delta = np.einsum("or,r,ri...->oi...", lowered.B.astype(np.float64), lowered.s, A)
    ones = (1,) * (weight.ndim - 2)
    g = 1.0 if lowered.g is None else lowered.g.astype(np.float64)
    h = np.ones(weight.shape[1]) if lowered.h is None else lowered.h.astype(np.float64)
    # each group of a grouped convolution reads its own channels
    parts = h.reshape(-1, weight.shape[1])
    columns = np.repeat(parts, len(weight) // len(parts), axis=0)
    scaled = np.reshape(g, (-1, 1, *ones)) * weight * columns.reshape(*columns.shape, *ones)
    c = 0 if lowered.c is None else lowered.c.astype(np.float64)
    return scaled + delta, g * bias + c


def installed(adapter: Adapter, parameter: str, values: Array) -> Array:
    """A parameter of a module `[out, in]` or `[out]`, as the adapter replaces it."""
    if parameter not in adapter.parameters:
        return values
    new = adapter.parameter(parameter).astype(np.float64)
    return new if new.shape == values.shape else new.T


@pytest.mark.parametrize("case", cases("exact", "base", "extended", "dense"))
def test_the_merged_weight_is_pefts(case: str) -> None:
    adapter, base, expected = opened(case)
    found = {key.partition(":")[2] for key in expected if key.startswith(("delta:", "weight:"))}
    found -= {name for name in found if name.rpartition(".")[0].endswith("experts")}
    assert found <= set(adapter.shapes), "PEFT adapts a module that the rule does not see"
    for module in found:
        shape = adapter.shapes[module]
        weight = base.weight(module).astype(np.float64)
        lowered = adapter.lower(module, None if shape.need is Need.NOTHING else base)
        ours, bias = merged(
            installed(adapter, f"{module}.weight", weight),
            installed(adapter, f"{module}.bias", base.bias(module)),
            lowered,
        )
        turned = base.sizes(module).is_embedding
        theirs, delta = (
            expected[key].T if turned and key in expected else expected.get(key)
            for key in (f"weight:{module}", f"delta:{module}")
        )
        if delta is None:
            assert theirs is not None
            delta = theirs - weight
        limit = WITH_WEIGHT if shape.need is Need.WEIGHT else EXACT
        # PEFT adds its delta to the base in float32, which rounds the sum once.
        rounding = HALF_UNIT * np.abs(weight + delta)
        if f"bias:{module}" in expected:
            # where PEFT cannot merge, delta is a difference of outputs with this bias in them
            moved = np.abs(expected[f"bias:{module}"]).reshape(-1, *(1,) * (weight.ndim - 1))
            rounding = 2 * (rounding + HALF_UNIT * moved)
        allowed = limit * np.abs(delta).max() + rounding
        assert (np.abs(ours - weight - delta) <= allowed).all(), module
        if f"bias:{module}" in expected:
            off = np.abs(bias - expected[f"bias:{module}"]).max()
            assert off <= limit * np.abs(expected[f"bias:{module}"]).max(), module
        if isinstance(lowered, Lowered):
            assert lowered.rank == shape.rank
            told = {v for v in "ghc" if getattr(lowered, v) is not None}
            assert told <= shape.vectors, "a vector that the headers did not announce"
        assert isinstance(lowered, Dense) == shape.dense


def lower_everything(case: str) -> None:
    adapter, base, _ = opened(case)
    for module in adapter.shapes:
        adapter.lower(module, base)


@pytest.mark.parametrize("case", OUT_OF_REACH)
def test_what_the_files_do_not_tell_is_refused(case: str) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        lower_everything(case)
    assert caught.value.hint


@pytest.mark.parametrize(
    "case", [c for c in CASES if CASES[c]["class"] != "refuse" and c not in OUT_OF_REACH]
)
def test_replaced_parameters_are_pefts(case: str) -> None:
    adapter, _, expected = opened(case)
    with_ties = [shape for shape in adapter.parameters.values() if shape.with_ties]
    for name in [key.partition(":")[2] for key in expected if key.startswith("param:")]:
        theirs = expected[f"param:{name}"]
        if name not in adapter.parameters:
            # PEFT writes one of the tables that share their values
            (tied,) = with_ties
            np.testing.assert_array_equal(theirs, expected[f"param:{tied.parameter}"])
            continue
        shape = adapter.parameters[name]
        rows = slice(None) if shape.rows is None else list(shape.rows)
        np.testing.assert_array_equal(adapter.parameter(name), theirs[rows])


@pytest.mark.parametrize("case", cases("refuse"))
def test_what_cannot_be_exact_is_refused_with_a_reason(case: str) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        load_adapter(case, KINDS / case, RULES)
    error: LoraQuantError = caught.value
    assert error.hint
    assert error.where.adapter == case
