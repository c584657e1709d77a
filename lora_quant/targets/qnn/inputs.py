"""The graph inputs of the qnn target that an adapter file fills, and what a use case puts there.

    lora_alpha                 float32 [slots]         the strengths
    lora_alpha.expansion       int8 [slots, R]         1 where a rank belongs to a slot
    <module>.lora_A, lora_B    int8 or int16           A' and B' on the grid from -1 to 1
    <module>.lora_ratio        uint16 [parts * R]      see lora_quant.targets.qnn.factors
    <module>.lora_g, _h, _c    uint16                  on the grid of all use cases

Codes have `_quantized` behind the name of what they stand for. Every file fills every input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.config.manifest_records import OverridableRecord
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.quantize import dequantize, quantize
from lora_quant.graph.device.rank_ratios import RankRatio
from lora_quant.graph.device.signed_operands import HIGHEST_SIGNED
from lora_quant.graph.quantized.qdq_records import quantized_name
from lora_quant.graph.records import BranchedGraph, TensorRecord, Vector, VectorTensors
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import SlotTable
from lora_quant.passes.weight_values import PointValues, use_case_weights
from lora_quant.targets.qnn.factors import RankMagnitudes, normalised_a, normalised_b
from lora_quant.targets.qnn.grids import SharedGrids

Codes = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class QnnInput:
    """One input: its float tensor, role and encoding, and the code that stands for its default."""

    tensor: TensorRecord
    role: str
    encoding: Encoding
    default: float = 0.0

    @property
    def dtype(self) -> str:
        """Signed where the encoding is symmetric, in whole containers."""
        kind = "int" if self.encoding.symmetric else "uint"
        return f"{kind}{self.encoding.bits}"

    @property
    def record(self) -> TensorRecord:
        """The input of codes."""
        return TensorRecord(quantized_name(self.tensor.name), self.tensor.shape, self.dtype)

    def codes(self, values: NDArray[np.generic]) -> Codes:
        """Real values as codes."""
        middle = 2 ** (self.encoding.bits - 1) if self.encoding.symmetric else 0
        steps = quantize(self.encoding, values) - middle
        return steps.astype(self.dtype).reshape(self.tensor.shape)


class QnnInputs:
    """All inputs, in the order of the graph's attach points; alpha and the mask come first."""

    def __init__(
        self,
        compilation: Compilation,
        ratios: Sequence[RankRatio],
        shared: SharedGrids,
        bits: int,
    ) -> None:
        """`bits` are those of A and B, 8 or 16."""
        branched: BranchedGraph = compilation.having("branched")
        self._compilation = compilation
        self._shared = shared
        self.alpha = None if branched.scale is None else branched.scale.alpha
        self._expansion = None
        if branched.scale is not None and branched.scale.expansion is not None:
            # With 1 as the code 1 of a grid of whole numbers, the HTP loses dozens of steps.
            whole = Encoding.per_tensor(1.0 / 127, bits=8, symmetric=True)
            self._expansion = QnnInput(branched.scale.expansion, "expansion", whole)
        highest = HIGHEST_SIGNED if bits == 16 else 2 ** (bits - 1) - 1
        unit = Encoding.per_tensor(1.0 / highest, bits=bits, symmetric=True)
        self._factors: dict[str, tuple[QnnInput, QnnInput, QnnInput]] = {}
        for ratio in ratios:
            branch = ratio.branch
            self._factors[branch.attach.name] = (
                QnnInput(branch.a_weight, "a_weight", unit),
                QnnInput(branch.b_weight, "b_weight", unit),
                QnnInput(ratio.weight, "ratio", shared.ratio(branch.attach.name)),
            )
        self._vectors: dict[str, list[QnnInput]] = {}
        for made in branched.vectors:
            self._vectors.setdefault(made.attach.name, []).append(self._vector(made))
        self._points = [point.name for point in branched.points]

    @property
    def quantized(self) -> tuple[QnnInput, ...]:
        """Those that are codes."""
        found = [self._expansion] if self._expansion is not None else []
        for name in self._points:
            found += [*self._factors.get(name, ()), *self._vectors.get(name, ())]
        return tuple(found)

    @property
    def records(self) -> tuple[TensorRecord, ...]:
        """Names, shapes and dtypes as an adapter file has them."""
        first = () if self.alpha is None else (self.alpha,)
        return (*first, *(one.record for one in self.quantized))

    @property
    def overridable(self) -> tuple[OverridableRecord, ...]:
        """The same for the manifest."""
        roles = [] if self.alpha is None else ["alpha"]
        roles += [one.role for one in self.quantized]
        return tuple(
            OverridableRecord(name=r.name, dtype=r.dtype, shape=r.shape, role=role)
            for r, role in zip(self.records, roles, strict=True)
        )

    def values(self, use_case: str) -> Iterator[tuple[str, Codes]]:
        """What a use case puts into every input, in the order of `records`."""
        table: SlotTable = self._compilation.having("slots")
        slots = table.use_cases[use_case]
        if self.alpha is not None:
            alpha = np.array(table.alphas(use_case), np.float32)
            if self._expansion is None:
                alpha = np.zeros(self.alpha.shape, np.float32)
                for slot in slots:
                    ranks = alpha.reshape(-1)[slot.start : slot.start + slot.rank]
                    ranks[:] = slot.alpha * slot.scale
            yield self.alpha.name, alpha
        if self._expansion is not None:
            mask = np.zeros(self._expansion.tensor.shape)
            for slot in slots:
                mask[slot.index, slot.start : slot.start + slot.rank] = 1.0
            yield self._expansion.record.name, self._expansion.codes(mask)
        for point in use_case_weights(self._compilation, use_case):
            yield from self._point(use_case, point)

    def _point(self, use_case: str, point: PointValues) -> Iterator[tuple[str, Codes]]:
        factors = self._factors.get(point.point.name)
        if factors is not None and point.branch is not None:
            branch = point.branch
            found = self._shared.magnitudes(use_case, branch, point.values)
            a, b, ratio = factors
            steps = _rounded_up(found, ratio.encoding)
            real = dequantize(ratio.encoding, steps)
            values_a, values_b = (point.values[one.tensor.name] for one in (a, b))
            yield a.record.name, a.codes(normalised_a(branch, values_a, found))
            yield b.record.name, b.codes(normalised_b(branch, values_b, found, real))
            yield ratio.record.name, steps.astype(ratio.dtype).reshape(ratio.tensor.shape)
        for one in self._vectors.get(point.point.name, ()):
            yield one.record.name, one.codes(point.values[one.tensor.name])

    def _vector(self, made: VectorTensors) -> QnnInput:
        default = 0.0 if made.vector is Vector.C else 1.0
        encoding = self._shared.vector(made)
        return QnnInput(made.weight, made.vector.value, encoding, default)


def _rounded_up(found: RankMagnitudes, grid: Encoding) -> NDArray[np.float64]:
    """The least code of the ratio's grid that is not below the ratio; 0 for empty ranks."""
    # A quotient that is whole but for its own rounding must not become one more.
    exact = found.ratio / float(grid.stored_scale) * (1 - 2.0**-40)
    steps: NDArray[np.float64] = np.minimum(np.ceil(exact), grid.steps)
    return steps
