"""How a weight of a branch is stored in an adapter file, and what of it the file holds.

    float      <w>
    encoded    <w>_quantized, <w>_scale, <w>_zero_point    on the grid of the use case's encoding
    computed   the same                                    on a grid that follows from the values
    4 bits     <w>_quantized, <w>_scale                    as MatMulNBits packs them

Of the padded tensor only the ranks are stored that the use case has (see RankGroup).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.nbits import NBitsLayout, pack_values
from lora_quant.graph.quantized.qdq_operators import grid_sizes
from lora_quant.graph.quantized.qdq_records import quantized_name, scale_name, zero_point_name
from lora_quant.graph.records import TensorRecord
from lora_quant.passes.rank_groups import RankGroup
from lora_quant.targets.quantized.grids import located
from lora_quant.targets.quantized.quantized_values import (
    computed_values,
    quantize_values,
    take_ranks,
)

Values = NDArray[Any]
Named = tuple[str, Values]


@dataclass(frozen=True)
class RankedWeight:
    """A or B of one attach point: its padded record, its rank axis and its group.

    channel_axis: the axis of the outputs, which has a scale for each.
    """

    record: TensorRecord
    axis: int
    channel_axis: int
    group: RankGroup

    def shape(self, ranks: int) -> tuple[int, ...]:
        """Its shape with that many ranks."""
        return (*self.record.shape[: self.axis], ranks, *self.record.shape[self.axis + 1 :])

    def dims(self, ranks: int | str) -> tuple[int | str, ...]:
        """Its shape as the graph tells it, where an open axis has a name."""
        return (*self.record.shape[: self.axis], ranks, *self.record.shape[self.axis + 1 :])

    def with_axes(self, encoding: Encoding) -> Encoding:
        """An encoding of the padded weight with its axes, which not every file tells."""
        facts = TensorFacts(self.record.shape, self.channel_axis, 1 - self.channel_axis)
        return resolve(encoding, facts)


@dataclass(frozen=True)
class UseCaseWeight:
    """A or B as a use case has it."""

    weight: RankedWeight
    use_case: str

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.weight.record.name

    @property
    def shape(self) -> tuple[int, ...]:
        """With the ranks of the use case."""
        return self.weight.shape(self.weight.group.ranks(self.use_case))

    def take(self, padded: Values) -> Values:
        """The ranks of the use case."""
        return self.weight.group.take(padded, self.weight.axis, self.use_case)


class WeightForm(Protocol):
    """One way to store A or B."""

    def records(self, weight: UseCaseWeight) -> tuple[TensorRecord, ...]:
        """What the file of a use case holds of the weight."""

    def values(self, weight: UseCaseWeight, padded: Values) -> Iterator[Named]:
        """The same tensors with their values, given those of all ranks."""


@dataclass(frozen=True)
class FloatForm:
    """The values as they are."""

    def records(self, weight: UseCaseWeight) -> tuple[TensorRecord, ...]:
        """The weight itself."""
        return (TensorRecord(weight.name, weight.shape, weight.weight.record.dtype),)

    def values(self, weight: UseCaseWeight, padded: Values) -> Iterator[Named]:
        """The ranks of the use case."""
        yield weight.name, weight.take(padded)


@dataclass(frozen=True, eq=False)
class EncodedForm:
    """Codes on the grid of an encoding of the padded weight.

    `grid` is any grid of the same structure; `has_grid`: whether the file brings scale and zero
    point, which the graph has as constants otherwise.
    """

    encoding: Encoding
    grid: Grid
    has_grid: bool
    where: Where

    def records(self, weight: UseCaseWeight) -> tuple[TensorRecord, ...]:
        """Codes, and the grid where it can change."""
        return _coded(weight, self.grid, has_grid=self.has_grid)

    def values(self, weight: UseCaseWeight, padded: Values) -> Iterator[Named]:
        """Raises EncodingsError for ranks that cut the blocks that share a scale."""
        whole = quantize_values(padded, self.encoding, where=self.where)
        positions = weight.weight.group.positions(weight.use_case)
        with located(self.where):
            taken = take_ranks(whole, weight.weight.axis, positions)
        yield quantized_name(weight.name), taken.codes
        if self.has_grid:
            yield scale_name(weight.name), taken.grid.scale
            yield zero_point_name(weight.name), taken.grid.zero_point


@dataclass(frozen=True)
class ComputedForm:
    """Codes on the symmetric min-max grid of each channel."""

    dtype: Literal["int8", "int16"]
    channel_axis: int

    def grid(self, channels: int) -> Grid:
        """A grid of that structure, for values of zero."""
        zeros = np.zeros(channels, self.dtype)
        return Grid(self.dtype, np.ones(channels, np.float32), zeros, axis=self.channel_axis)

    def records(self, weight: UseCaseWeight) -> tuple[TensorRecord, ...]:
        """Codes, scales and zero points."""
        return _coded(weight, self.grid(1), has_grid=True)

    def values(self, weight: UseCaseWeight, padded: Values) -> Iterator[Named]:
        """Of the ranks of the use case alone, so that the others do not widen a grid."""
        taken = weight.take(padded)
        coded = computed_values(taken.astype(np.float32), self.dtype, self.channel_axis)
        yield quantized_name(weight.name), coded.codes
        yield scale_name(weight.name), coded.grid.scale
        yield zero_point_name(weight.name), coded.grid.zero_point


@dataclass(frozen=True)
class FourBitForm:
    """Packed codes and the scales of their blocks."""

    layout: NBitsLayout

    def records(self, weight: UseCaseWeight) -> tuple[TensorRecord, ...]:
        """The same shapes in every use case: the operator has them as attributes."""
        dtype = weight.weight.record.dtype
        return (
            TensorRecord(quantized_name(weight.name), self.layout.packed_shape, "uint8"),
            TensorRecord(scale_name(weight.name), self.layout.scales_shape, dtype),
        )

    def values(self, weight: UseCaseWeight, padded: Values) -> Iterator[Named]:
        """Ranks that the use case does not have are zeros."""
        packed = pack_values(weight.take(padded), self.layout)
        yield quantized_name(weight.name), packed.packed
        yield scale_name(weight.name), packed.scales


def _coded(weight: UseCaseWeight, grid: Grid, *, has_grid: bool) -> tuple[TensorRecord, ...]:
    codes = TensorRecord(quantized_name(weight.name), weight.shape, grid.dtype)
    if not has_grid:
        return (codes,)
    sizes = tuple(size for size in grid_sizes(grid, weight.shape) if isinstance(size, int))
    return (
        codes,
        TensorRecord(scale_name(weight.name), sizes, "float32"),
        TensorRecord(zero_point_name(weight.name), sizes, grid.dtype),
    )
