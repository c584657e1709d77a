"""What the use case of a graph is called: as stated, by the stem of its file, or by its folder.

use_case_graphs/tone.onnx    tone            tone/model.onnx    tone, as `model` tells nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.names import clashes, folder_name_problem
from lora_quant.config.real_path import real_path
from lora_quant.configure.found.found_files import FoundFiles, FoundGraph, StatedUseCase
from lora_quant.configure.pairing.claims import plain_stem
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity

_COMMON_STEMS = frozenset({"model", "net", "network", "exported", "decoder", "graph"})


@dataclass(frozen=True, eq=False)
class NamedGraphs:
    """The graphs of use cases; one without a name among `names` was left out, with a finding."""

    graphs: tuple[FoundGraph, ...]
    names: Mapping[Path, str]
    findings: tuple[Finding, ...]


def name_graphs(
    files: FoundFiles, base: FoundGraph, stated: Mapping[str, StatedUseCase]
) -> NamedGraphs:
    """Name the use case of every graph that has branches and is not the base."""
    own = real_path(base.path)
    graphs = tuple(g for g in files.graphs if g.points and real_path(g.path) != own)
    findings: list[Finding] = []
    by_model: dict[Path, list[str]] = {}
    for one in stated.values():
        if one.model is not None:
            by_model.setdefault(real_path(one.model), []).append(one.name)
    names: dict[Path, str] = {}
    stems = [plain_stem(g.path).casefold() for g in graphs]
    for graph in graphs:
        said = by_model.get(real_path(graph.path), [])
        stem = plain_stem(graph.path)
        is_common = stem.casefold() in _COMMON_STEMS or stems.count(stem.casefold()) > 1
        in_folder = graph.path.parent != files.folder
        name = graph.path.parent.name if is_common and in_folder else stem
        name = said[0] if len(said) == 1 else name
        if folder_name_problem(name) is not None:
            findings.append(bad_name(name, graph.path))
        else:
            names[graph.path] = name
    paths = list(names)
    for index, earlier in clashes([names[path] for path in paths]):
        path = paths[index]
        findings.append(
            Finding(
                "convert/ambiguous",
                Severity.WARNING,
                f"two graphs are those of use case {earlier!r} by name; this one was left out",
                Where(file=path, use_case=earlier),
                "give the graphs different names",
            )
        )
        del names[path]
    return NamedGraphs(graphs, names, tuple(findings))


def bad_name(name: str, file: Path) -> Finding:
    """The finding for a name that can be no folder."""
    return Finding(
        "convert/bad-name",
        Severity.WARNING,
        f"use case {name!r} was left out: its name {folder_name_problem(name)}, and becomes a "
        "folder",
        Where(file=file, use_case=name),
        "rename the file",
    )
