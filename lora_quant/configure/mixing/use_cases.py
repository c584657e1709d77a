"""The use cases of a folder, and the adapters of each.

use_case_graphs/both.onnx    both: the adapters that its ranks and scales tell
no graphs with branches      what configurations state, encodings tell, and every adapter alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_quant.config.names import folder_name_problem
from lora_quant.configure.found.found_files import FoundFiles, FoundGraph, PointRanks, StatedUseCase
from lora_quant.configure.mixing.chosen_mix import (
    chosen_mix,
    contradicted,
    stated_strengths,
    strengths_of,
    unusual,
)
from lora_quant.configure.mixing.mixes import Mix, possible_mixes
from lora_quant.configure.mixing.row_order import proven_order
from lora_quant.configure.mixing.sources import AdapterSource
from lora_quant.configure.pairing.claims import named_after, plain_stem
from lora_quant.configure.pairing.fits import Known, encoded_ranks
from lora_quant.configure.pairing.graph_names import NamedGraphs, bad_name
from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.passes.exported.descriptions import Described
from lora_quant.passes.exported.readings import Law


@dataclass(frozen=True, eq=False)
class UseCase:
    """A use case to write: its graph, what it mixes, and how that was decided.

    `known`: the names that its files may hold; None where its branches are not in a graph yet.
    """

    name: str
    model: Path
    adapters: tuple[str, ...]
    strengths: tuple[float, ...]
    known: Known | None
    reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class UseCases:
    """In the order in which they are written, the base first."""

    use_cases: tuple[UseCase, ...]
    findings: tuple[Finding, ...] = field(default=())


def use_cases_of(
    files: FoundFiles,
    base: FoundGraph,
    named: NamedGraphs,
    adapters: Mapping[str, AdapterSource],
    stated: Mapping[str, StatedUseCase],
) -> UseCases:
    """The base's use case, and those with adapters; what could not be decided is a finding."""
    findings: list[Finding] = []
    found: list[UseCase] = []
    if named.graphs:
        found += _of_graphs(named, adapters, stated, findings)
    else:
        found += _without_graphs(files, base, adapters, stated, findings)
    taken = {use_case.name.casefold() for use_case in found}
    name = next(
        (s.name for s in stated.values() if s.adapters == () and s.name.casefold() not in taken),
        "base" if "base" not in taken else "base only",
    )
    first = UseCase(name, base.path, (), (), Known.of(base), "no adapters")
    found.sort(key=lambda use_case: (len(use_case.adapters), use_case.name))
    return UseCases((first, *found), tuple(findings))


def _of_graphs(
    named: NamedGraphs,
    adapters: Mapping[str, AdapterSource],
    stated: Mapping[str, StatedUseCase],
    findings: list[Finding],
) -> Iterator[UseCase]:
    described = {n: a.described for n, a in adapters.items() if a.described is not None}
    laws: dict[str, Law] = {}
    # An adapter alone in the use case of its name tells how its scale is to be read.
    for alone in (True, False):
        for graph in named.graphs:
            name = named.names.get(graph.path)
            if name is None or (name in described) is not alone:
                continue
            try:
                mixes = possible_mixes(graph, described, laws, stated_strengths(stated.get(name)))
            except LoraQuantError as error:
                findings.append(_no_mix(name, graph, error.message))
                continue
            mix, reason = chosen_mix(mixes, name, stated.get(name))
            if mix is None:
                findings.append(_no_mix(name, graph, _why_no_mix(mixes, adapters)))
                continue
            if len(mix.adapters) == 1:
                laws.setdefault(mix.adapters[0], mix.laws[0])
            said = stated.get(name)
            strengths, notes = strengths_of(mix, name, said, findings, graph.path)
            findings += contradicted(mix, strengths, name, said, graph.path)
            findings += unusual(mix, name, said, graph.path)
            yield UseCase(name, graph.path, mix.adapters, strengths, Known.of(graph), reason, notes)


def _without_graphs(
    files: FoundFiles,
    base: FoundGraph,
    adapters: Mapping[str, AdapterSource],
    stated: Mapping[str, StatedUseCase],
    findings: list[Finding],
) -> Iterator[UseCase]:
    weights = {n: a for n, a in adapters.items() if a.has_weights}
    for name, source in adapters.items():
        if not source.has_weights:
            findings.append(
                Finding(
                    "convert/no-weights",
                    Severity.WARNING,
                    f"adapter {name!r} has a description and no weights, and was left out",
                    Where(file=source.paths[0], adapter=name),
                    "put its PEFT folder, or the graph of its use case, in the folder",
                )
            )
    mixes: dict[str, tuple[Mix, str]] = {}
    for name in weights:
        mixes[name] = (Mix((name,), (None,), (Law.LORA,)), "the adapter alone")
    for one in stated.values():
        if one.adapters and all(name in weights for name in one.adapters):
            laws = tuple(Law.LORA for _ in one.adapters)
            mix = Mix(one.adapters, (None,) * len(one.adapters), laws)
            mixes[one.name] = (mix, "as a configuration says")
    mixes |= _from_encodings(files, weights, mixes, findings)
    for name, (mix, reason) in mixes.items():
        if folder_name_problem(name) is not None:
            findings.append(bad_name(name, files.folder))
            continue
        strengths, notes = strengths_of(mix, name, stated.get(name), findings, files.folder)
        yield UseCase(name, base.path, mix.adapters, strengths, None, reason, notes)


def _from_encodings(
    files: FoundFiles,
    weights: Mapping[str, AdapterSource],
    taken: Mapping[str, object],
    findings: list[Finding],
) -> dict[str, tuple[Mix, str]]:
    """Mixes that encodings of no other use case tell, by modules and ranks."""
    described: dict[str, Described] = {
        n: a.described for n, a in weights.items() if a.described is not None
    }
    found: dict[str, tuple[Mix, str]] = {}
    for encodings in files.encodings:
        name = plain_stem(encodings.path)
        if named_after(encodings.path, list(taken), files.folder) is not None:
            continue
        ranks = encoded_ranks(encodings.names, encodings.channels)
        if not ranks or None in ranks.values():
            continue
        points = tuple(PointRanks((module,), rank or 0, None) for module, rank in ranks.items())
        graph = FoundGraph(encodings.path, encodings.names, points, frozenset(), {}, ())
        mixes = possible_mixes(graph, described, {}, {})
        sets = {frozenset(mix.adapters) for mix in mixes}
        if len(sets) != 1 or len(mixes[0].adapters) < 2:
            continue
        opened = {one.name: one.adapter for one in files.adapters}
        try:
            order = proven_order(encodings.path, [mix.adapters for mix in mixes], opened)
        except LoraQuantError:  # damaged weights, which the trial names
            order = None
        reason = "the adapters whose modules and ranks its encodings have"
        if order is not None:
            mix = next(mix for mix in mixes if mix.adapters == order)
            found[name] = (mix, f"{reason}, in the order of its grids")
            continue
        found[name] = (mixes[0], reason)
        findings.append(
            Finding(
                "convert/order-assumed",
                Severity.WARNING,
                f"the encodings tell the adapters of use case {name!r}, and not their order: "
                f"{', '.join(mixes[0].adapters)}",
                Where(file=encodings.path, use_case=name),
                "put them in the order in which their ranks lie in the graph that was calibrated",
            )
        )
    return found


def _why_no_mix(mixes: Sequence[Mix], adapters: Mapping[str, AdapterSource]) -> str:
    if mixes:
        shown = [" + ".join(mix.adapters) for mix in mixes]
        return f"several mixes have its ranks, and its name tells none: {some(shown)}"
    if not adapters:
        return "no file describes an adapter, and its scales do not tell one"
    return f"no mix of {some(list(adapters))} has its ranks and scales"


def _no_mix(name: str, graph: FoundGraph, reason: str) -> Finding:
    ranks = sorted({point.ranks for point in graph.points})
    modules = [point.modules[0] for point in graph.points if point.modules]
    return Finding(
        "convert/no-mix",
        Severity.WARNING,
        f"use case {name!r} was left out: {reason}; its graph has branches at "
        f"{len(graph.points)} modules ({some(modules, most=2)}), with ranks "
        f"{', '.join(map(str, ranks))}",
        Where(file=graph.path, use_case=name),
        "put the adapter JSON or the PEFT folders of its adapters in the folder, correct rank, "
        "alpha and target_modules of those that are there, or write it into the file by hand",
    )
