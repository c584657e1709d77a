"""What the graphs of use cases tell: which ranks of which branch are whose, and what is called how.

use case both, module q_proj:  A [12, in]  =  tone: ranks 0-3   legal: ranks 4-11
use case both, module o_proj:  A  [8, in]  =                    legal: ranks 0-7
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.graph.exported.records import FoundBranch
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.records import LinearNode


@dataclass(frozen=True)
class AdapterRanks:
    """Ranks `[begin, begin + size)` of an exported branch, as its file stores them, of an adapter.

    They come in the order of the file. Ranks that no adapter owns are padding, and zero.
    """

    adapter: str
    begin: int
    size: int


@dataclass(frozen=True)
class ExportedBranch:
    """One branch of one use case's graph: the module that it adapts, and whose ranks it holds."""

    module: str
    found: FoundBranch
    ranks: tuple[AdapterRanks, ...]


@dataclass(frozen=True, eq=False)
class ExportedUseCase:
    """One use case's graph.

    `branches` in graph order; several of one module are chained. `base_names`: tensor of this graph
    -> tensor of the base, for all that both have; `same_names`: other tensor -> the one that has
    its values; `other_names`: what the base has no counterpart of. `h` and `y`: module -> name in
    this graph of the base's own output, and of the last sum. `as_read`: weight of a branch -> its
    node as it reads another tensor, which a Transpose or Cast makes of it. `data_files` hold its
    external data.
    """

    name: str
    model: Path
    branches: tuple[ExportedBranch, ...]
    base_names: Mapping[str, str]
    same_names: Mapping[str, str]
    other_names: frozenset[str]
    h: Mapping[str, str]
    y: Mapping[str, str]
    as_read: Mapping[str, LinearNode] = field(default_factory=dict)
    data_files: tuple[DataFile, ...] = ()


@dataclass(frozen=True, eq=False)
class ExportedUseCases:
    """All use cases that come as graphs of their own, by name.

    `checkpoints`: adapter -> what its branches are as a PEFT checkpoint, for adapters without
    weights of their own, and `descriptions` the files that describe these. `modules`: module ->
    node of the base, as the graphs tell it.
    """

    use_cases: Mapping[str, ExportedUseCase] = field(default_factory=dict)
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    modules: Mapping[str, list[str]] = field(default_factory=dict)
    descriptions: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
