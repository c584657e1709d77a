"""Signal to noise of outputs and of what adapters change in them, against formulas and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.runtime.verify.sqnr import OutputSqnr, compare_sqnr, decibels_of

Array = NDArray[Any]
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(1, 8, 50))
EFFECT = 0.1 * RNG.normal(size=(1, 8, 50))
BOUND = 15.0


def figures(got: Array, off: Array, effect: Array = EFFECT) -> OutputSqnr:
    wanted = {"y": BASE + effect}
    (one,) = compare_sqnr("it", {"y": got}, {"y": off}, wanted, {"y": BASE}, BOUND)
    return one


@given(st.floats(-3, 4))
def test_a_strength_shows_as_what_it_is(strength: float) -> None:
    """The error is (strength - 1) times the effect."""
    one = figures(BASE + strength * EFFECT, BASE)
    assert one.strength == pytest.approx(strength, abs=1e-12)
    assert one.effect is not None
    if abs(strength - 1) > 1e-6:
        # Sums of 400 products in float64: relative errors of some 1e-15, 1e-9 where 1 cancels.
        assert one.effect == pytest.approx(-20 * math.log10(abs(strength - 1)), abs=1e-6)
    assert one.ok == (one.effect >= BOUND)


@pytest.mark.parametrize(
    ("strength", "decibels"), [(0, 0), (2, 0), (0.5, 6.02), (1.25, 12.04), (1.1, 20)]
)
def test_the_table_of_what_is_wrong(strength: float, decibels: float) -> None:
    assert figures(BASE + strength * EFFECT, BASE).effect == pytest.approx(decibels, abs=0.005)


def test_one_of_n_modules_that_is_left_out() -> None:
    """Their effects have nothing in common, and add up to the whole."""
    parts = np.zeros((16, 1, 16, 25))
    for number in range(16):
        parts[number, 0, number] = np.where(np.arange(25) % 2, 1.0, -1.0)
    base = np.zeros((1, 16, 25))
    whole = parts.sum(axis=0)
    (one,) = compare_sqnr(
        "it", {"y": whole - parts[3]}, {"y": base}, {"y": whole}, {"y": base}, BOUND
    )
    assert one.effect == pytest.approx(10 * math.log10(16), abs=1e-9)
    assert one.strength == pytest.approx(15 / 16, abs=1e-12)


def test_noise_of_the_base_cancels_in_the_effect() -> None:
    """Both runs have it: what is left is what the adapters add."""
    noise = RNG.normal(size=BASE.shape)
    one = figures(BASE + EFFECT + noise, BASE + noise)
    assert one.sqnr < 1
    assert one.effect is not None
    assert one.effect > 200
    assert one.ok


def test_a_large_base_hides_nothing() -> None:
    """Without the adapter the output as a whole looks fine."""
    one = figures(BASE, BASE)
    assert one.sqnr > BOUND
    assert (one.effect, one.strength, one.ok) == (0, 0, False)


def test_another_adapter_is_below_zero() -> None:
    """Two effects of one size that have nothing in common: twice the energy, -3 dB."""
    other = np.roll(EFFECT, 7, axis=-1)
    one = figures(BASE + other, BASE)
    assert one.effect is not None
    # The 400 values correlate by chance, by 1/20: 10 log10(2 - 2/20) is 2.8.
    assert one.effect == pytest.approx(-3, abs=0.5)


def test_where_adapters_change_nothing_the_graph_may_not_either() -> None:
    """Beyond the noise that it has without adapters; 3 dB more of it are allowed."""
    still = np.zeros_like(EFFECT)
    noise = 0.01 * RNG.normal(size=BASE.shape)
    for got, ok in ((noise, True), (1.4 * noise, True), (1.5 * noise, False), (EFFECT, False)):
        one = figures(BASE + got, BASE + noise, still)
        assert (one.effect, one.strength) == (None, None)
        assert one.ok == ok
    assert figures(BASE, BASE, still).ok, "no noise in either"
    assert not figures(BASE + 1e-6 * EFFECT, BASE, still).ok, "the graph has no noise without it"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    got = (BASE + EFFECT).copy()
    got[0, 0, 0] = value
    one = figures(got, BASE)
    assert not one.ok
    assert math.isnan(one.sqnr)


def test_another_shape_fails() -> None:
    one = figures((BASE + EFFECT)[:, :4], BASE)
    assert not one.ok
    assert math.isnan(one.sqnr)
    assert math.isnan(decibels_of(BASE, BASE[:, :4]))


def test_outputs_of_integers_and_without_elements_are_left_out() -> None:
    wanted: dict[str, NDArray[Any]] = {"ids": np.arange(4), "empty": np.zeros((0, 3), np.float32)}
    assert compare_sqnr("it", wanted, wanted, wanted, wanted, BOUND) == []


def test_no_noise_is_infinite() -> None:
    assert decibels_of(BASE, BASE) == math.inf
    assert decibels_of(np.zeros(3), np.ones(3)) == -math.inf
    assert decibels_of(np.ones(3), np.zeros(3)) == 0
