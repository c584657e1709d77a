"""The base graph as the rooms above see it: opened once, its names and linear nodes indexed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_quant.graph.attach.catalog import LinearCatalog, build_catalog
from lora_quant.graph.attach.parameter_table import ParameterTable
from lora_quant.graph.files.graph_index import GraphIndex, build_index
from lora_quant.graph.files.model_file import ModelFile, load_model
from lora_quant.graph.files.zero_weights import ZeroWeights


@dataclass(frozen=True, eq=False)
class BaseGraph:
    """A loaded graph with its lookup tables.

    `add_branches` edits `model.proto` in place, so that a graph with its weights inside is never
    held twice; the tables keep describing the base. `zeros` are the initial branch weights.
    """

    model: ModelFile
    index: GraphIndex
    catalog: LinearCatalog
    zeros: ZeroWeights

    @property
    def path(self) -> Path:
        """The file that the graph was read from."""
        return self.model.path

    @cached_property
    def parameters(self) -> ParameterTable:
        """Where the parameters of the source model are stored."""
        return ParameterTable(self.index, self.catalog)


def open_base(path: Path) -> BaseGraph:
    """Load and index the graph at `path` without its weights."""
    model = load_model(path)
    index = build_index(model.proto)
    catalog = build_catalog(model.proto, index)
    return BaseGraph(model, index, catalog, ZeroWeights(external=bool(model.data_files)))
