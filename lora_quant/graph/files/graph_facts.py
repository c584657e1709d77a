"""What other files can be held against in a graph: its names, dtypes and shapes, no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class TensorRole(Enum):
    """What a tensor is in its graph."""

    INPUT = "input"
    OVERRIDABLE = "input with a default"
    INITIALIZER = "initializer"
    ACTIVATION = "activation"
    OUTPUT = "output"


@dataclass(frozen=True)
class TensorFact:
    """One tensor. dtype: ONNX's name in lower case, None if it is not told.

    shape: -1 for a size that is open, None if nothing is told. Constants that Constant nodes hold
    are initializers here. axis: the axis of the output channels if a linear node reads it as its
    weight, else None.
    """

    role: TensorRole
    dtype: str | None
    shape: tuple[int, ...] | None
    axis: int | None = None

    @property
    def is_param(self) -> bool:
        """Whether quantizers file it under params."""
        return self.role in (TensorRole.INITIALIZER, TensorRole.OVERRIDABLE)


@dataclass(frozen=True)
class GraphFacts:
    """Names of one graph, subgraphs left out. nodes: node name -> operator."""

    path: Path
    nodes: Mapping[str, str]
    tensors: Mapping[str, TensorFact]
