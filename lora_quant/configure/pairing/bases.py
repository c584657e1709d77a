"""Which graph of a folder is the base: the one without branches.

Of several, the one that a configuration names for a use case without adapters; then the one that
shares the most names with the graphs of use cases. Two that share as many stay open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.real_path import real_path
from lora_quant.configure.found.found_files import FoundFiles, FoundGraph
from lora_quant.configure.found.graph_facts import read_graph
from lora_quant.errors import ConfigError, Where, some
from lora_quant.findings import Finding, Severity


@dataclass(frozen=True, eq=False)
class ChosenBase:
    """The base, or None with the reason among the findings; `reason` says how it was chosen."""

    graph: FoundGraph | None
    reason: str
    findings: tuple[Finding, ...]


def choose_base(files: FoundFiles, given: Path | None) -> ChosenBase:
    """The base among the graphs; ConfigError if `given` is none of them, or has branches."""
    plain = [g for g in files.graphs if not g.points and not g.foreign]
    if given is not None:
        return ChosenBase(_given(files, given), "as it was given", ())
    if not plain:
        return ChosenBase(None, "", (_none(files),))
    if len(plain) == 1:
        return ChosenBase(plain[0], "the only graph without branches", tuple(_others(files, [])))
    stated = _stated(files, plain)
    if stated is not None:
        rest = [g for g in plain if g is not stated]
        return ChosenBase(stated, "as a configuration says", tuple(_others(files, rest)))
    branched = [g for g in files.graphs if g.points]
    if branched:
        shares = [sum(len(g.names & u.names) for u in branched) for g in plain]
        best = [g for g, share in zip(plain, shares, strict=True) if share == max(shares)]
        if len(best) == 1 and max(shares):
            rest = [g for g in plain if g is not best[0]]
            reason = "without branches, and its names are in the graphs of the use cases"
            return ChosenBase(best[0], reason, tuple(_others(files, rest)))
        plain = best
    shown = [files.shown(g.path) for g in plain]
    return ChosenBase(
        None,
        "",
        (
            Finding(
                "convert/several-bases",
                Severity.ERROR,
                f"{len(plain)} graphs without branches could be the base: {some(shown)}",
                Where(file=files.folder),
                "say which one with --base, or leave one of them in the folder",
            ),
        ),
    )


def _given(files: FoundFiles, given: Path) -> FoundGraph:
    wanted = real_path(given)
    graph = next((g for g in files.graphs if real_path(g.path) == wanted), None)
    graph = graph or read_graph(given)
    if graph.points:
        raise ConfigError(
            f"the base graph has branches at {len(graph.points)} modules",
            where=Where(file=given),
            hint="give the graph that the branches were added to, or a build with "
            "--no-create-lora-graph if there is none",
        )
    return graph


def _stated(files: FoundFiles, plain: list[FoundGraph]) -> FoundGraph | None:
    by_path = {real_path(g.path): g for g in plain}
    models = {
        real_path(use_case.model)
        for statements in files.statements
        for use_case in statements.use_cases
        if use_case.model is not None and use_case.adapters == ()
    }
    found = [by_path[path] for path in models if path in by_path]
    return found[0] if len(found) == 1 else None


def _others(files: FoundFiles, rest: list[FoundGraph]) -> Iterator[Finding]:
    for graph in rest:
        yield Finding(
            "convert/unused-file",
            Severity.NOTE,
            "another graph is the base, and this one has no branches: it was left out",
            Where(file=graph.path),
        )
    for graph in files.graphs:
        if graph.foreign:
            yield _foreign(graph)


def _foreign(graph: FoundGraph) -> Finding:
    return Finding(
        "convert/unknown-branches",
        Severity.WARNING,
        f"the graph was left out: {graph.foreign}",
        Where(file=graph.path),
        "export the use case with its adapters inside, weights and all, or give the base graph and "
        "the PEFT folders",
    )


def _none(files: FoundFiles) -> Finding:
    branched = [files.shown(g.path) for g in files.graphs if g.points]
    foreign = [g for g in files.graphs if g.foreign]
    if foreign:
        message = f"no graph can be the base; of {files.shown(foreign[0].path)}: "
        message += foreign[0].foreign
    elif branched:
        message = f"no graph is without branches, the base is missing: there are {some(branched)}"
    elif any(f.where.file is not None and f.where.file.suffix == ".onnx" for f in files.findings):
        message = "no ONNX graph in the folder can be read"
    else:
        message = "there is no ONNX graph in the folder"
    return Finding(
        "convert/no-base",
        Severity.ERROR,
        message,
        Where(file=files.folder),
        "put the base graph in the folder, or name it with --base",
    )
