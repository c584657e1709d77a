"""The quant-updatable tensor sets, as records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """Which encodings may differ between use cases: none, those of the branches, or all."""

    NONE = "none"
    ADAPTER_ONLY = "adapter_only"
    ALL = "all"


@dataclass(frozen=True)
class UpdatableTensors:
    """What a use case may change.

    values: LoRA weights, whose values always change. weights, activations: tensors whose encoding
    may change. In mode `all` every activation may, except the alpha input; `activations` then
    holds those of the graph that are known to be float or of unknown type.
    """

    mode: Mode
    values: frozenset[str]
    weights: frozenset[str]
    activations: frozenset[str]

    @property
    def encodings(self) -> frozenset[str]:
        """Names of all tensors whose encoding may differ between use cases."""
        return self.weights | self.activations

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.weights or tensor in self.activations
