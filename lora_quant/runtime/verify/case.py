"""One use case in one setting of its gates, with what the outputs have to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.config.manifest_records import UseCaseRecord
from lora_quant.engines.onnxruntime import Array


@dataclass(frozen=True, eq=False)
class Case:
    """What every target of the pack is run with, and held against.

    feeds: inputs of the base graph, with room for a soft prompt but not the prompt: that is the
    target's own. blank: the same with zeros in the prompt's place. gates tells how they are set, ""
    without any; gate `[batch, tokens]` or `[1, 1]` are the values, None without any; on: whether
    any is.

    plain: outputs of the base graph for `blank`. wanted: those of the reference. floors: what
    rounding may change in each output of floats; empty if no target asks. exact: the outputs with
    exact updates where `wanted` has approximations.
    """

    use_case: UseCaseRecord
    feeds: Mapping[str, Array]
    blank: Mapping[str, Array]
    gates: str
    gate: NDArray[np.float32] | None
    on: bool
    plain: Mapping[str, Array]
    wanted: Mapping[str, Array]
    floors: Mapping[str, float]
    exact: Mapping[str, Array] | None = None

    @property
    def has_effect(self) -> bool:
        """Whether the adapters change anything at all."""
        return any(not np.array_equal(y, self.plain[name]) for name, y in self.wanted.items())
