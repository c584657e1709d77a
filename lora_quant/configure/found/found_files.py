"""Records of what the files of a folder are, as far as their content tells.

base.onnx           FoundGraph, no points            tone.onnx      FoundGraph, points
tone.encodings      FoundEncodings                   tone.txt       FoundList
tone.json           FoundParams                      adapters/tone  FoundAdapter
lora_config.yaml    FoundStatements (of any spelling)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_quant.adapters.adapter import Adapter
from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.configure.found.walk import shown_path
from lora_quant.findings import Finding


@dataclass(frozen=True)
class PointRanks:
    """A module with branches: its names, best first, and its ranks, those of chained branches too.

    Ranks whose scale is zero at the tail of a branch are padding and do not count. `scales`: what
    each rank is multiplied by, None where no constant tells it.
    """

    modules: tuple[str, ...]
    ranks: int
    scales: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class FoundGraph:
    """An ONNX graph. `names`: of all tensors and nodes. `data`: its files of external data.

    `branch_tensors` are those that only a branch has: weights of A and B, what they give, scales.
    `a_ranks`: weight of A -> rank. `foreign`: why it can be no base although no branch was
    recognised, "" if it can.
    """

    path: Path
    names: frozenset[str]
    points: tuple[PointRanks, ...]
    branch_tensors: frozenset[str]
    a_ranks: Mapping[str, int]
    data: tuple[Path, ...]
    foreign: str = ""


@dataclass(frozen=True, eq=False)
class FoundEncodings:
    """An encodings file. `channels`: their number, for every entry that tells it."""

    path: Path
    version: str | None
    names: frozenset[str]
    channels: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class FoundList:
    """A text with one name a line."""

    path: Path
    names: frozenset[str]


@dataclass(frozen=True, eq=False)
class FoundParams:
    """A description without weights: an adapter JSON, or a PEFT configuration (`params` None)."""

    path: Path
    name: str
    params: AdapterParamsConfig | None


@dataclass(frozen=True, eq=False)
class FoundAdapter:
    """A checkpoint that opens; `path` is its folder, or its file where the folder has several."""

    path: Path
    name: str
    adapter: Adapter


@dataclass(frozen=True, eq=False)
class StatedUseCase:
    """What a configuration of any spelling says of a use case; None where it does not say."""

    name: str
    model: Path | None = None
    encodings: Path | None = None
    updatable: Path | None = None
    adapters: tuple[str, ...] | None = None
    alphas: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class FoundStatements:
    """A configuration that some tool or person wrote: use cases, and sources of adapters."""

    path: Path
    use_cases: tuple[StatedUseCase, ...]
    adapters: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    mapping: Path | None = None


@dataclass(frozen=True, eq=False)
class FoundFiles:
    """Everything in a folder that has a part in a configuration, in the order of the paths."""

    folder: Path
    graphs: tuple[FoundGraph, ...] = ()
    encodings: tuple[FoundEncodings, ...] = ()
    lists: tuple[FoundList, ...] = ()
    params: tuple[FoundParams, ...] = ()
    adapters: tuple[FoundAdapter, ...] = ()
    mappings: tuple[Path, ...] = ()
    statements: tuple[FoundStatements, ...] = ()
    findings: tuple[Finding, ...] = ()

    def shown(self, path: Path) -> str:
        """A path as a person reads it, see shown_path."""
        return shown_path(path, self.folder)
