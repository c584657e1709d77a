"""Which adapters a use case's graph can hold, in which order, and how strong.

    q_proj: scales 2 2 2 2 3.4 3.4 3.4 3.4 3.4 3.4 3.4 3.4      tone: rank 4, alpha/r 2
    k_proj: scales 3.4 3.4 3.4 3.4 3.4 3.4 3.4 3.4              legal: rank 8, alpha/sqrt(r) 5.7
        ->  1 tone + 0.6 legal

The ranks of a mix add up to those of the graph at every module, and all ranks of one adapter have
one scale, which gives one strength over all modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from lora_quant.configure.found.found_files import FoundGraph, PointRanks
from lora_quant.passes.exported.descriptions import Described, Setting
from lora_quant.passes.exported.readings import Law

# Scales are stored as float32, or float16 in half-precision graphs.
_TOLERANCE = 2e-3
MOST_ADAPTERS = 5
_MOST_SETS = 64


@dataclass(frozen=True)
class Mix:
    """Adapters in the order of their ranks. A strength is None where the graph does not tell it.

    `laws`: how the scale of each is read.
    """

    adapters: tuple[str, ...]
    strengths: tuple[float | None, ...]
    laws: tuple[Law, ...]


def possible_mixes(
    graph: FoundGraph,
    described: Mapping[str, Described],
    laws: Mapping[str, Law],
    expected: Mapping[str, float],
) -> list[Mix]:
    """Every mix of at most `MOST_ADAPTERS` adapters that fits all modules of the graph.

    `laws`: the reading of the scale that is known already of some adapters; else the one that gives
    the `expected` strength, which is 1 where it does not say. Raises ConfigError for
    a description that contradicts itself.
    """
    modules = [module for point in graph.points for module in point.modules]
    places = {m: number for number, p in enumerate(graph.points) for m in p.modules}
    settings: dict[str, dict[int, Setting]] = {}
    for name, one in described.items():
        found = one.settings(modules)
        settings[name] = {places[module]: setting for module, setting in reversed([*found.items()])}
    totals = [point.ranks for point in graph.points]
    mixes = []
    for names in _sets(totals, settings):
        for order in permutations(names):
            mix = _read(order, graph.points, settings, laws, expected)
            if mix is not None:
                mixes.append(mix)
    return mixes


def _sets(
    totals: Sequence[int], settings: Mapping[str, Mapping[int, Setting]]
) -> list[tuple[str, ...]]:
    """Sets of adapters whose ranks add up to `totals`, smaller sets first."""
    names = [name for name, places in settings.items() if places]
    # Modules at which all is alike are one equation: a model repeats its layers.
    equations = sorted(
        {
            (total, *(settings[name][n].rank if n in settings[name] else 0 for name in names))
            for n, total in enumerate(totals)
        }
    )
    found: list[tuple[str, ...]] = []
    dead: set[tuple[int, int, tuple[int, ...]]] = set()

    def extend(chosen: tuple[str, ...], start: int, left: tuple[int, ...]) -> None:
        if not any(left):
            found.append(chosen)
            return
        state = (len(chosen), start, left)
        if len(chosen) == MOST_ADAPTERS or state in dead:
            return
        before = len(found)
        for index in range(start, len(names)):
            rest = tuple(n - one[index + 1] for n, one in zip(left, equations, strict=True))
            if min(rest) >= 0 and len(found) < _MOST_SETS:
                extend((*chosen, names[index]), index + 1, rest)
        if len(found) == before:
            dead.add(state)

    extend((), 0, tuple(equation[0] for equation in equations))
    return sorted(found, key=len)


def _read(
    order: Sequence[str],
    points: Sequence[PointRanks],
    settings: Mapping[str, Mapping[int, Setting]],
    laws: Mapping[str, Law],
    expected: Mapping[str, float],
) -> Mix | None:
    """The mix in this order; None if the scales contradict it."""
    told: dict[str, dict[Law, list[float]]] = {name: {} for name in order}
    for number, point in enumerate(points):
        begin = 0
        for name in order:
            setting = settings[name].get(number)
            if setting is None:
                continue
            scales = None
            if point.scales is not None:
                scales = point.scales[begin : begin + setting.rank]
                if not _equal(scales):
                    return None
            begin += setting.rank
            for law, factor in setting.laws.items():
                values = told[name].setdefault(law, [])
                if scales is not None and factor:
                    values.append(scales[0] / factor)
    strengths: list[float | None] = []
    chosen: list[Law] = []
    for name in order:
        consistent = {law: v[0] if v else None for law, v in told[name].items() if _equal(v)}
        if name in laws:
            consistent = {law: v for law, v in consistent.items() if law is laws[name]}
        if not consistent:
            return None
        usual = expected.get(name, 1.0)
        law = min(consistent, key=lambda law: (not _is(consistent[law], usual), law is Law.RSLORA))
        value = consistent[law]
        chosen.append(law)
        strengths.append(None if value is None else _rounded(value))
    return Mix(tuple(order), tuple(strengths), tuple(chosen))


def _equal(values: Sequence[float]) -> bool:
    return not values or max(values) - min(values) <= _TOLERANCE * max(map(abs, values))


def _is(strength: float | None, usual: float) -> bool:
    return strength is not None and same_strength(strength, usual)


def same_strength(one: float, other: float) -> bool:
    """Whether two strengths are one, for scales that are stored in half precision."""
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


def _rounded(value: float) -> float:
    """The shortest strength within what the graph's type can hold apart."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= 1e-6 * abs(value):
            return short
    return value
