"""Descriptions of adapters that no file describes, from the graphs of use cases.

    use case tone: q_proj, v_proj with rank 4 and scale 2       ->  tone: rank 4, alpha 8
    use case both: two scales at one module                     ->  several adapters, not told

It is a convention that a use case's graph holds one adapter as trained; so it is a warning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.names import folder_name_problem
from lora_quant.configure.found.found_files import FoundFiles, FoundGraph
from lora_quant.configure.mixing.sources import AdapterSource, Sources
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.adapter_sources import DeclaredEntry
from lora_quant.passes.exported.descriptions import DeclaredDescribed


def derived_sources(files: FoundFiles, names: Mapping[Path, str]) -> Sources:
    """One adapter for every graph whose modules have one scale each; `names`: its use case's."""
    adapters: dict[str, AdapterSource] = {}
    findings: list[Finding] = []
    for graph in files.graphs:
        name = names.get(graph.path)
        if name is None or not graph.points:
            continue
        params = _described(name, graph)
        if params is None:
            continue
        entries = tuple(DeclaredEntry(one, None) for one in params)
        adapters[name] = AdapterSource(
            name,
            params,
            False,
            DeclaredDescribed(name, entries, files.folder),
            f"no file describes it: read from {files.shown(graph.path)}",
        )
        findings.append(
            Finding(
                "convert/description-assumed",
                Severity.WARNING,
                f"no file describes the adapter of use case {name!r}: rank and alpha are those of "
                "its graph, as if it held one adapter as trained",
                Where(file=graph.path, use_case=name),
                "put the adapter JSON or the adapter_config.json in the folder",
            )
        )
    return Sources(adapters, tuple(findings))


def _described(name: str, graph: FoundGraph) -> tuple[AdapterParamsConfig, ...] | None:
    """The descriptions of one adapter, by rank and alpha; None if the graph holds no such one."""
    modules: dict[tuple[int, float], list[str]] = defaultdict(list)
    for point in graph.points:
        if not point.modules or not point.scales or len(set(point.scales)) > 1:
            return None
        # Scales are stored as float32: lora_alpha was a short number.
        alpha = float(f"{point.scales[0] * point.ranks:.6g}")
        modules[point.ranks, alpha].append(point.modules[0])
    if folder_name_problem(name) is not None:
        return None
    return tuple(
        AdapterParamsConfig(
            name=name,
            rank=rank,
            alpha=int(alpha) if alpha.is_integer() else alpha,
            target_modules=targets,
        )
        for (rank, alpha), targets in modules.items()
    )
