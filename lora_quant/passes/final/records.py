"""Where the LoRA weights of each use case come from, if the graph itself is final.

use case with a graph of its own, or without adapters   stored: read from that graph, as they are
use case on the given graph, adapters with weights      placed: A and B go into the graph's ranks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora_quant.graph.exported.records import FoundBranch
from lora_quant.graph.exported.verbatim import VerbatimGraphs
from lora_quant.graph.files.external_data import DataFile

StrengthLayout = Literal["slot", "rank", "one"]


@dataclass(frozen=True)
class DescribedAdapter:
    """An adapter whose values are in graphs alone: what its description or checkpoint says of it.

    `rank` is the largest of its modules, `scale` the factor lora_alpha / r that most have. `files`
    are those that were read.
    """

    name: str
    kind: str
    format: str
    rank: int
    scale: float
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class GivenGraph:
    """What is settled of a final graph, step by step.

    stored: use case -> the graph that holds its values; a use case that is not in it has them
    placed. described: adapters that no use case places. data_files: those of use cases' own graphs,
    by use case. found: the branches by the name of their attach point, None before they are looked
    for. alpha_layout: that of the input for strengths, "one" if it has a single value for all
    slots. is_neutral: whether the graph as it is computes the base. opened: opens the graphs of
    `stored`.
    """

    stored: Mapping[str, Path]
    described: Mapping[str, DescribedAdapter] = field(default_factory=dict)
    data_files: Mapping[str, tuple[DataFile, ...]] = field(default_factory=dict)
    found: Mapping[str, FoundBranch] | None = None
    alpha_layout: StrengthLayout = "slot"
    is_neutral: bool = False
    opened: VerbatimGraphs = field(default_factory=VerbatimGraphs)
