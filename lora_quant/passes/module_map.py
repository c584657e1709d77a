"""The module map of the base, where it is not left to what the base itself tells.

attach_point_onnx_mapping   ->  as it is written, in the order of the model's definition
map_from, a float graph     ->  as lora_quant.graph.twin finds it
neither                     ->  None

It is found once in a build: a float graph is sampled at every weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_quant.config.attach_map import read_attach_map
from lora_quant.errors import ConfigError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.node_finder import WRITTEN
from lora_quant.graph.twin.twin_map import TwinMap, open_twin, twin_map

if TYPE_CHECKING:
    from lora_quant.passes.compilation import Compilation

_DERIVED = "the quantized graph, as the float graph tells"


@dataclass(frozen=True)
class ModuleMap:
    """Module path -> node names, the file that tells it, and what messages call it."""

    mapping: Mapping[str, list[str]] | None
    file: Path | None
    source: str = WRITTEN
    findings: tuple[Finding, ...] = ()

    @property
    def written(self) -> Mapping[str, list[str]] | None:
        """An `attach_point_onnx_mapping`, whose order is that of the model; None of any other."""
        return self.mapping if self.source == WRITTEN else None


def module_map(compilation: Compilation) -> ModuleMap:
    """That of an earlier pass, or else found now.

    Raises ConfigError if both files are given, GraphError if the float graph does not fit.
    """
    if compilation.modules is not None:
        return compilation.modules
    written = compilation.config.attach_point_onnx_mapping
    given = compilation.options.map_from
    if given is None:
        mapping = None if written is None else read_attach_map(written)
        return ModuleMap(mapping, written)
    if written is not None:
        raise ConfigError(
            f"the modules are told twice: by map_from, {given!r}, and by "
            f"attach_point_onnx_mapping, {str(written)!r}",
            where=Where(file=compilation.config_file, field="attach_point_onnx_mapping"),
            hint="leave one of them out; `lora-quant map QUANTIZED --map-from FLOAT` writes a "
            "mapping that can be completed by hand",
        )
    path = Path(given)
    twin = open_twin(path)
    found = twin_map(compilation.base, twin)
    return ModuleMap(found.mapping, path, _DERIVED, tuple(_findings(found, path)))


def _findings(found: TwinMap, path: Path) -> list[Finding]:
    findings = []
    if found.by_order:
        findings.append(
            Finding(
                rule="graph/told-by-order",
                severity=Severity.WARNING,
                message="nodes of the float graph have equal weights and connections, and names "
                "that the quantized graph does not have; they were taken in the order of the "
                f"graphs: {some(found.by_order)}",
                where=Where(file=path),
                hint="check them, or name their nodes in `attach_point_onnx_mapping`",
            )
        )
    if found.left_out:
        findings.append(
            Finding(
                rule="graph/not-in-quantized",
                severity=Severity.NOTE,
                message="modules of the float graph have no node in the quantized one that could "
                f"take a branch: {some(found.left_out)}",
                where=Where(file=path),
            )
        )
    return findings
