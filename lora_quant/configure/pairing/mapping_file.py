"""The attach point mapping of a folder: the one whose nodes are in the base graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.real_path import real_path
from lora_quant.configure.found.found_files import FoundFiles, FoundGraph
from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding, Severity


@dataclass(frozen=True)
class ChosenMapping:
    """The mapping if there is one, and why others were left out."""

    path: Path | None = None
    reason: str = ""
    findings: tuple[Finding, ...] = ()


def choose_mapping(files: FoundFiles, base: FoundGraph) -> ChosenMapping:
    """A mapping most of whose nodes are the base's; of several, the one that is stated."""
    findings: list[Finding] = []
    fitting: list[tuple[Path, int, int]] = []
    for path in files.mappings:
        try:
            nodes = {node for nodes in read_attach_map(path).values() for node in nodes}
        except LoraQuantError as error:
            findings.append(_left_out(path, error.message))
            continue
        known = len(nodes & base.names)
        if 2 * known > len(nodes):
            fitting.append((path, known, len(nodes)))
        else:
            findings.append(_left_out(path, f"{known} of its {len(nodes)} nodes are in the base"))
    said = {real_path(s.mapping) for s in files.statements if s.mapping is not None}
    chosen = [one for one in fitting if real_path(one[0]) in said] or fitting
    if len(chosen) > 1:
        paths = [files.shown(path) for path, _, _ in chosen]
        findings.append(
            Finding(
                "convert/ambiguous",
                Severity.WARNING,
                f"several attach point mappings fit the base, and none was taken: {some(paths)}",
                Where(file=files.folder),
                "leave one of them in the folder",
            )
        )
    if len(chosen) != 1:
        return ChosenMapping(findings=tuple(findings))
    path, known, total = chosen[0]
    return ChosenMapping(path, f"{known} of its {total} nodes are in the base", tuple(findings))


def _left_out(path: Path, reason: str) -> Finding:
    return Finding(
        "convert/unused-file",
        Severity.NOTE,
        f"the attach point mapping was left out: {reason}",
        Where(file=path),
    )
