"""What is asked of the insertion of Q/DQ, and what it made, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.records import TensorRecord

Codes = NDArray[Any]
Part = Literal["values", "scale", "zero_point"]


@dataclass(frozen=True)
class ExternalCodes:
    """Codes in a data file beside the graph: `[*shape]` in the grid's dtype, from `offset` on."""

    location: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ActivationQdq:
    """Q/DQ for one activation, per tensor and in whole containers of 8 or 16 bits.

    overridable: scale and zero point are graph inputs `[1]` with `grid` as default; else they are
    constants. dtype: float32, float16 or bfloat16, used where the graph does not tell the type.
    """

    grid: Grid
    overridable: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class WeightQdq:
    """Codes and DQ in place of one float initializer.

    codes: in the grid's dtype; None for real zeros, `shape` of them (by default the shape of the
    initializer). overridable_values, overridable_grid: what is a graph input, with codes or `grid`
    as default. dims: the sizes that the graph input declares, a name for one that is open: those
    of the codes by default. What the scale declares follows from them.
    """

    grid: Grid
    codes: Codes | ExternalCodes | None = None
    overridable_values: bool = False
    overridable_grid: bool = False
    shape: tuple[int, ...] | None = None
    dims: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class OverridableInput:
    """A graph input with a default that was made of tensor `of`; an open size is -1."""

    record: TensorRecord
    of: str
    part: Part


def quantized_name(tensor: str) -> str:
    """The name of its codes."""
    return f"{tensor}_quantized"


def scale_name(tensor: str) -> str:
    """The name of its scale."""
    return f"{tensor}_scale"


def zero_point_name(tensor: str) -> str:
    """The name of its zero point."""
    return f"{tensor}_zero_point"
