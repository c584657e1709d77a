"""What a graph tells of itself: its names, and the ranks at every module with a branch.

The graph is closed again afterwards; only names and numbers stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_quant.configure.found.found_files import FoundGraph, PointRanks
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.exported.branch_values import constant_factors
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import (
    ExportedGraph,
    FoundBranch,
    FoundPoint,
    ScaleSource,
)
from lora_quant.passes.exported.module_names import unwrapped

_LORA_NAME = re.compile(r"lora_?[ab]\b|lora_[AB](?![a-z])", re.IGNORECASE)


def read_graph(path: Path) -> FoundGraph:
    """Open, recognise and close the graph at `path`; the errors of reading graphs pass."""
    graph = open_base(path)
    exported = recognise_branches(graph)
    branches = [branch for point in exported.points for branch in point.branches]
    return FoundGraph(
        path=path,
        names=graph.index.names,
        points=tuple(
            _ranks(tuple(module_names(graph, point)), graph, point) for point in exported.points
        ),
        branch_tensors=frozenset(t for branch in branches for t in _own_tensors(branch)),
        a_ranks={branch.a.weight: branch.rank for branch in branches},
        data=tuple(data.path for data in graph.model.data_files),
        foreign="" if branches else _foreign(graph, exported),
    )


def module_names(graph: BaseGraph, point: FoundPoint) -> Iterator[str]:
    """The spellings of a module, best first, without the levels that PEFT's wrapper adds."""
    paths = graph.catalog.paths.get(point.linear.product, ())
    paths = paths or graph.catalog.embeddings.paths.get(point.linear.product, ())
    yield from dict.fromkeys(filter(None, map(unwrapped, paths)))


def branch_scales(graph: BaseGraph, branch: FoundBranch) -> tuple[float, ...] | None:
    """What every rank is multiplied by, without zeros at the tail; None if an input tells it."""
    if any(scale.source is not ScaleSource.CONSTANT for scale in branch.scales):
        return None
    total = constant_factors(graph, branch)
    used = int(np.flatnonzero(total)[-1]) + 1 if total.any() else branch.rank
    return tuple(map(float, total[:used]))


def _ranks(modules: tuple[str, ...], graph: BaseGraph, point: FoundPoint) -> PointRanks:
    scales = [branch_scales(graph, branch) for branch in point.branches]
    known = [one for one in scales if one is not None]
    if len(known) < len(scales):
        return PointRanks(modules, sum(branch.rank for branch in point.branches), None)
    flat = tuple(value for one in known for value in one)
    return PointRanks(modules, len(flat), flat)


def _own_tensors(branch: FoundBranch) -> Iterator[str]:
    yield from (branch.a.weight, branch.b.weight, branch.a.product, branch.b.product)
    yield from (scale.output for scale in branch.scales)


def _foreign(graph: BaseGraph, exported: ExportedGraph) -> str:
    if exported.near:
        near = exported.near[0]
        return f"{near.node!r} is nearly a branch: {near.reason}"
    found = next((name for name in sorted(graph.index.names) if _LORA_NAME.search(name)), None)
    return "" if found is None else f"it has a tensor {found!r} and no branch that is known"
