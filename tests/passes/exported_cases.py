"""Grids for the graphs of exported_builds, and what is compared about those that come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.passes.exported_builds import OURS, OUTPUTS, Entries, H, Own, build_exported
from tests.passes.kind_builds import Built, activation, ends, weight
from tests.sample import Document

RANKS = {"tone": 2, "legal": 4}
MIX = {"tone": 1.0, "legal": 0.5}
TONE = {"tone": 1.0}
JOINED = (("tone", "legal"),)
A_TONE, A_LEGAL = [0.021, 0.022], [0.031, 0.032, 0.033, 0.034]
B_GRIDS = [0.0231, 0.0232, 0.0233, 0.0234, 0.0235, 0.0236]
# The grids of a graph in which both adapters share one branch.
SHARED: dict[str, Document] = {
    "1.A": weight(A_TONE + A_LEGAL),
    "1.B": weight(B_GRIDS),
    "1.a": activation(-9.0, 8.0),
    "1.m": activation(-19.0, 18.0),
    "1.l": activation(-29.0, 28.0),
    "1.y": activation(-4.0, 5.0),
    H: activation(-4.0, 5.0),
}
CHAINED: dict[str, Document] = {
    "1.A": weight(A_TONE),
    "1.B": weight([0.03] * OUTPUTS),
    "1.a": activation(-1.0, 2.0),
    "1.m": activation(-2.0, 4.0),
    "1.l": activation(-5.0, 7.0),
    "1.y": activation(-9.0, 9.0),
    "2.A": weight(A_LEGAL),
    "2.B": weight(B_GRIDS),
    "2.a": activation(-3.0, 1.0),
    "2.m": activation(-3.0, 1.0),
    "2.l": activation(-6.0, 3.0),
    "2.y": activation(-4.0, 5.0),
    H: activation(-4.0, 5.0),
}


def both(folder: Path, own: Own, files: Entries | Document, **options: Any) -> Built:
    """A build with the use case `both` alone."""
    mix = options.pop("mix", MIX)
    ranks = {name: RANKS[name] for name in mix}
    return build_exported(folder, {"both": (own, mix)}, {"both": files}, ranks, **options)


def close(found: Document, low: float, high: float) -> bool:
    """Whether a grid has these ends, but for half a step that the offset rounds away."""
    half = (high - low) / (2 ** found["bw"] - 1) / 2
    got = ends(found)
    # the step itself is a quotient of doubles
    slack = half * (1 + 1e-9)
    return bool(abs(got[0] - low) <= slack and abs(got[1] - high) <= slack)


def covers(found: Document, *given: Document) -> bool:
    """Whether a grid reaches as far as each of others, and is at most a step wider than needed.

    With its lower end on a whole number of steps, it has to reach up to a step further.
    """
    lows, highs = zip(*(ends(entry) for entry in given), strict=True)
    low, high = ends(found)
    step = (high - low) / (2 ** found["bw"] - 1)
    is_tight = high - low <= max(highs) - min(lows) + step
    return bool(low <= min(lows) and high >= max(highs) and is_tight)


def all_rules(built: Built) -> set[str]:
    return {finding.rule for finding in built.findings}


def grids(found: dict[str, Document]) -> dict[str, Any]:
    """What is given of the branch at the module, without names."""
    return {
        role: {k: v for k, v in found[name].items() if k != "name"}
        for role, name in OURS.items()
        if name in found
    }
