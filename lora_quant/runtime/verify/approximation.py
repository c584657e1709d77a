"""Low-rank stand-ins of dense updates: read back from a pack, and held against the exact update.

There is no honest bound on what an error of a layer does to the outputs: a network may amplify it.
So two things are checked that together leave nothing open. What the pack's factors amount to may be
no farther from the exact update than the manifest says, and the graph has to compute just these
factors, to the same tolerance as any other. How far the outputs are from the exact ones is told.

The error that was recorded is of factors in float64. In the pack A, B and s are rounded, to their
type and to float32 on the way, which changes each product in B s A by less than 4 u for a unit
roundoff u of their type. As ||B| |A|| is at most sqrt(rank) ||B A|| for factors of one range, and
||A|| where B is the identity, 4 u sqrt(rank) is added to what was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import BranchTensors, UseCaseRecord
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.reference.updates import Matrix, Part
from lora_quant.runtime.verify.factors import FactorSource

_ROUNDINGS = 4


@dataclass(frozen=True)
class LayerError:
    """||delta - B s A|| / ||delta|| of one module (Frobenius), and what it may be."""

    use_case: str
    adapter: str
    module: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error is within what was recorded; NaN is not."""
        return self.error <= self.bound


class Approximations:
    """Reads the factors of one use case; `errors` collects what was found."""

    def __init__(
        self,
        manifest: Manifest,
        use_case: UseCaseRecord,
        source: FactorSource,
        gains: Mapping[str, float],
    ) -> None:
        """`gains` are the factors of Gemm nodes, by node."""
        self._manifest = manifest
        self._use_case = use_case
        self._source = source
        self._gains = gains
        self._limits = {a.name: a.max_error for a in manifest.adapters}
        self._points = {point.name: point for point in manifest.attach_points}
        self.errors: list[LayerError] = []

    def substitute(self, part: Part, exact: Matrix, later: Matrix) -> Matrix:
        """What the pack has in the place of `exact` `[out, ...]`, as a matrix of the same size.

        Raises VerificationError if the manifest has no approximation of the adapter.
        """
        limit = self._limits.get(part.adapter)
        point = self._points[part.site.point]
        tensors = point.tensors
        if limit is None or tensors is None:
            raise VerificationError(
                "the update of this module has no low rank, and the manifest tells of no "
                "approximation",
                where=Where(use_case=self._use_case.name, adapter=part.adapter, module=part.module),
                hint="build the pack again",
            )
        slots = [slot.adapter for slot in self._use_case.slots]
        found = self._source.read(part.site, point, tensors, slots.index(part.adapter))
        gain = (later * self._gains[part.site.node])[:, None]
        left = np.divide(found.left, gain, out=np.zeros_like(found.left), where=gain != 0)
        right = found.right.reshape(len(found.right), -1)
        delta: Matrix = (left * found.scale) @ right
        norm = float(np.linalg.norm(exact))
        distance = float(np.linalg.norm(exact.reshape(delta.shape) - delta))
        error = distance / norm if norm else distance
        allowed = limit + _ROUNDINGS * self._unit(tensors) * float(np.sqrt(len(right)))
        self.errors.append(
            LayerError(self._use_case.name, part.adapter, part.module, error, allowed)
        )
        return delta

    def _unit(self, tensors: BranchTensors) -> float:
        types = {tensor.name: tensor.dtype for tensor in self._manifest.tensors}
        return float(np.finfo(types[tensors.b_weight]).eps) / 2
