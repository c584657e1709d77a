"""Finding the mix of adapters in a graph again, from nothing but its ranks and scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.configure.found.found_files import FoundGraph, PointRanks
from lora_quant.configure.mixing.mixes import possible_mixes
from lora_quant.passes.adapter_sources import DeclaredEntry
from lora_quant.passes.exported.descriptions import DeclaredDescribed

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj")


@st.composite
def mixtures(
    draw: st.DrawFn,
) -> tuple[dict[str, AdapterParamsConfig], list[str], list[float]]:
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    adapters = {
        name: AdapterParamsConfig(
            name=name,
            rank=draw(st.sampled_from((1, 2, 4, 8, 16))),
            alpha=draw(st.sampled_from((1, 8, 12, 16, 32))),
            target_modules=draw(
                st.lists(st.sampled_from(LEAVES), min_size=1, max_size=4, unique=True)
            ),
        )
        for name in names
    }
    mix = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    strengths = [draw(st.sampled_from((-0.5, 0.25, 0.6, 1.0, 1.5))) for _ in mix]
    return adapters, mix, strengths


def graph_of(points: dict[str, list[float]]) -> FoundGraph:
    """A graph whose modules have these scales, rounded as its file stores them."""
    stored = {leaf: [float(np.float32(scale)) for scale in s] for leaf, s in points.items()}
    return FoundGraph(
        Path("graph.onnx"),
        frozenset(),
        tuple(
            PointRanks((f"layers.0.{leaf}",), len(scales), tuple(scales))
            for leaf, scales in stored.items()
        ),
        frozenset(),
        {},
        (),
    )


@given(mixtures())
def test_the_mix_that_made_the_scales_is_among_the_possible_ones(
    case: tuple[dict[str, AdapterParamsConfig], list[str], list[float]],
) -> None:
    adapters, mix, strengths = case
    points: dict[str, list[float]] = {}
    for name, strength in zip(mix, strengths, strict=True):
        one = adapters[name]
        for leaf in one.target_modules:
            points.setdefault(leaf, []).extend([one.alpha / one.rank * strength] * one.rank)
    described = {
        name: DeclaredDescribed(name, (DeclaredEntry(one, None),), Path("config.yaml"))
        for name, one in adapters.items()
    }
    found = possible_mixes(graph_of(points), described, {}, {})
    same = [m for m in found if m.adapters == tuple(mix)]
    # adapters whose modules do not meet have no order
    if not same:
        same = [m for m in found if set(m.adapters) == set(mix)]
    assert same
    told = dict(zip(same[0].adapters, same[0].strengths, strict=True))
    for name, strength in zip(mix, strengths, strict=True):
        one, value = adapters[name], told[name]
        assert value is not None
        # rsLoRA's reading is taken where it alone gives 1: the files do not tell the two apart
        readings = (strength, strength / np.sqrt(one.rank))
        # a float32 scale is within 2**-24 of what it stores, and the strength is cut to 1e-6 of it
        assert any(abs(value - reading) <= 2e-6 * abs(reading) for reading in readings)


def test_equal_adapters_stay_open() -> None:
    one = AdapterParamsConfig(name="a", rank=4, alpha=8, target_modules=["q_proj"])
    described = {
        name: DeclaredDescribed(name, (DeclaredEntry(one, None),), Path("config.yaml"))
        for name in ("a", "b")
    }
    found = possible_mixes(graph_of({"q_proj": [2.0] * 4}), described, {}, {})
    assert [mix.adapters for mix in found] == [("a",), ("b",)]


def test_ranks_that_nobody_has_fit_nothing() -> None:
    one = AdapterParamsConfig(name="a", rank=4, alpha=8, target_modules=["q_proj"])
    described = {"a": DeclaredDescribed("a", (DeclaredEntry(one, None),), Path("config.yaml"))}
    assert possible_mixes(graph_of({"q_proj": [2.0] * 5}), described, {}, {}) == []
