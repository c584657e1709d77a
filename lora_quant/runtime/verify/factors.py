"""A, B and s of one adapter at one attach point, as the files of a pack have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import AttachPointRecord, BranchTensors, UseCaseRecord
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.reference.sites import Site
from lora_quant.runtime.reference.updates import Matrix


@dataclass(frozen=True, eq=False)
class Factors:
    """B `[out, r]` and A `[r, ...]` of one module, s `[r]` without the strength of the adapter."""

    left: Matrix
    scale: NDArray[np.float64]
    right: Matrix


class FactorSource(Protocol):
    """The files of one use case for one target."""

    def read(
        self, site: Site, point: AttachPointRecord, tensors: BranchTensors, index: int
    ) -> Factors:
        """Of the adapter in the slot `index`; VerificationError if the files lack them."""


class WeightsFile:
    """The weights file of the qairt target: every slot at its place among the max rank."""

    def __init__(self, manifest: Manifest, use_case: UseCaseRecord, path: Path) -> None:
        self._manifest = manifest
        self._use_case = use_case
        self._path = path

    def read(
        self, site: Site, point: AttachPointRecord, tensors: BranchTensors, index: int
    ) -> Factors:
        """See FactorSource."""
        slot = self._use_case.slots[index]
        right, left = self._tensor(tensors.a_weight), self._tensor(tensors.b_weight)
        scale = np.full(slot.rank, slot.scale)
        for record in self._manifest.tensors:
            if record.role == "expansion":
                scale = self._tensor(record.name)[index, slot.start : slot.start + slot.rank]
        left, right = by_rank(point, left, right)
        first = site.part * (len(right) // len(point.modules)) + slot.start
        ranks = slice(first, first + slot.rank)
        return Factors(left[site.rows, ranks], scale, right[ranks])

    def _tensor(self, name: str) -> Matrix:
        try:
            with safe_open(str(self._path), "numpy") as file:
                values: Matrix = file.get_tensor(name).astype(np.float64)
                return values
        except (SafetensorError, OSError) as error:
            raise VerificationError(
                f"the weights of the use case cannot be read: {error}",
                where=Where(file=self._path, use_case=self._use_case.name, tensor=name),
                hint="build the pack again",
            ) from error


def by_rank(point: AttachPointRecord, left: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
    """B `[out, r]` and A `[r, ...]` of the weights as a graph stores them."""
    if point.form == "conv":
        return left.reshape(left.shape[:2]), right
    return left.T, right.T
