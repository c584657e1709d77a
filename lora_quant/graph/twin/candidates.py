"""Which float weights a quantized one can have been made from, by their values.

    distance = root mean square of (quantized - float) / step       about 0.3 for plain rounding

A weight is a candidate if it is within one step, and about as near as the nearest. Of 4 bits on,
other weights are several steps away; of 2 bits they are about one, so that the nearest counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.twin.sampling import Sample

LIMIT = 1.0
_AS_NEAR = 1.1
# Of sums of some thousand float32 products, relative to the sum of their magnitudes.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Candidates:
    """`products` are those of the candidates; `nearest` is the nearest weight of all."""

    products: tuple[str, ...]
    nearest: str
    distance: float


class FloatWeights:
    """Samples of float weights of one shape, by the product of their node."""

    def __init__(self, samples: Mapping[str, Sample]) -> None:
        self._products = tuple(samples)
        self._values = np.stack([sample.values for sample in samples.values()])
        with np.errstate(over="ignore"):  # such a weight is judged by its distance, in doubles
            self._squares = np.square(self._values)
        self._spacing = max(sample.spacing for sample in samples.values())

    def candidates(self, sample: Sample) -> Candidates:
        """Those that the quantized weight of `sample` can have been made from."""
        inverse = 1 / sample.tolerances(self._spacing)
        with np.errstate(over="ignore", invalid="ignore"):
            roughly, error = self._rough_squares(sample, np.square(inverse).astype(np.float32))
            possible = roughly <= np.square(_AS_NEAR * LIMIT) + error
            # At least one, for a message.
            possible[np.nan_to_num(roughly, nan=np.inf, posinf=np.inf).argmin()] = True
            distances = {
                number: self._distance(sample, number, inverse)
                for number in np.flatnonzero(possible).tolist()
            }
        nearest = min(distances, key=distances.__getitem__)
        farthest = min(LIMIT, _AS_NEAR * distances[nearest])
        near = (number for number, distance in distances.items() if distance <= farthest)
        products = tuple(self._products[number] for number in near)
        return Candidates(products, self._products[nearest], distances[nearest])

    def _rough_squares(
        self, sample: Sample, weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Squared distances, by three sums of products, and how far they can be off."""
        count = len(weights)
        own = np.dot(np.square(sample.values), weights) / count
        others = self._squares @ weights / count
        mixed = self._values @ (sample.values * weights) / count
        return own + others - 2 * mixed, _ROUNDING * (own + others)

    def _distance(self, sample: Sample, number: int, inverse: NDArray[np.float64]) -> float:
        difference = sample.values.astype(np.float64) - self._values[number]
        distance = float(np.sqrt(np.mean(np.square(difference * inverse))))
        return distance if np.isfinite(distance) else np.inf
