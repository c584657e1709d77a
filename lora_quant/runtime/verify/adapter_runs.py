"""Running the graph of a target that has one adapter file per use case, as an application does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from lora_quant.engines.active_adapter import AdapterSession
from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.compiled import gate_values
from lora_quant.runtime.verify.pack import Pack


class AdapterRuns:
    """One session, opened from the graph's file; the adapter is in the options of each run."""

    def __init__(self, pack: Pack, target: str, proto: ModelProto, path: Path) -> None:
        self._pack = pack
        self._target = target
        self._alpha = pack.manifest.alpha_of(pack.target(target))
        self._path = path
        self._session = AdapterSession(path)
        self._sizes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in proto.graph.input
        }

    def off(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs without an adapter file: the graph's defaults."""
        return self._session.run({**feeds, **self.gate(None)})

    def off_unfused(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The same without fusions, which may reorder sums differently in this graph and its base.

        In a session of its own.
        """
        session = AdapterSession(self._path, optimization="basic")
        return session.run({**feeds, **self.gate(None)})

    def on(self, case: Case) -> dict[str, Array]:
        """Outputs with the adapter file of a use case, and its soft prompt."""
        return self._session.run(self.feeds(case), self.adapter(case))

    def feeds(self, case: Case) -> dict[str, Array]:
        """What a use case is run with, but for its adapter file."""
        feeds = self._pack.with_prompt(self._target, case.use_case, case.feeds)
        return {**feeds, **self.gate(case)}

    def adapter(self, case: Case) -> Path | None:
        """The adapter file of a use case, unchanged since the build; None in a merged pack."""
        if self._pack.manifest.merged is not None:
            return None
        return self._pack.file(self._target, "adapter", case.use_case.name)

    def gate(self, case: Case | None) -> dict[str, Array]:
        """The gate that an application feeds, in the sizes that a static graph has; 1 if off."""
        if self._alpha is None or self._alpha.gate is None:
            return {}
        name = self._alpha.gate.tensor
        use_case, gate = (None, None) if case is None else (case.use_case, case.gate)
        values = gate_values(self._alpha, use_case, gate)
        sizes = [size or own for size, own in zip(self._sizes[name], values.shape, strict=True)]
        return {name: np.broadcast_to(values, sizes).copy()}
