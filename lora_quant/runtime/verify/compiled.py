"""Running the compiled graph of the `qairt` target with the weights of any use case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from safetensors import safe_open

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import AlphaRecord, UseCaseRecord
from lora_quant.runtime.reference.engine import Engine


class CompiledGraph:
    """One session; weights are fed, since the engine cannot replace initializers of a session."""

    def __init__(self, proto: ModelProto, path: Path, manifest: Manifest) -> None:
        """Makes the LoRA weights overridable; the session is kept for all use cases."""
        names = {tensor.name for tensor in manifest.tensors}
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                value = proto.graph.input.add(name=tensor.name)
                value.type.tensor_type.elem_type = tensor.data_type
                for size in tensor.dims:
                    value.type.tensor_type.shape.dim.add(dim_value=size)
        self._manifest = manifest
        self._engine = Engine(proto.SerializeToString(), path.parent, path)

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        use_case: UseCaseRecord | None,
        weights: Path | None,
        gate: NDArray[np.float32] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Outputs for a use case with its weights file; both None: as initialised, alpha 0.

        `gate` `[batch, tokens]` is fed for the slots that are gated; without it every gate is 1.
        """
        feeds = dict(inputs)
        alpha = self._manifest.alpha
        if alpha is not None:
            feeds[alpha.tensor] = alpha_values(alpha, use_case)
            if alpha.gate is not None:
                feeds[alpha.gate.tensor] = gate_values(alpha, use_case, gate)
        if weights is not None:
            with safe_open(str(weights), "numpy") as file:
                feeds.update((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        return self._engine.run(feeds)


def alpha_values(alpha: AlphaRecord, use_case: UseCaseRecord | None) -> NDArray[np.float32]:
    """The alpha input of a use case with its compiled strengths, zeros for None.

    slot layout: one strength per slot. rank layout: alpha_i * scale_i on the ranks of slot i. one:
    1 for a use case with adapters, which is as its graph was exported.
    """
    if alpha.layout == "one":
        on = use_case is not None and len(use_case.slots) > 0
        return np.full(alpha.shape, float(on), np.float32)
    values = np.zeros(alpha.shape, np.float32)
    flat = values.reshape(-1)
    for index, slot in enumerate(use_case.slots if use_case is not None else ()):
        if alpha.layout == "slot":
            flat[index] = slot.alpha
        else:
            flat[slot.start : slot.start + slot.rank] = slot.alpha * slot.scale
    return values


def gate_values(
    alpha: AlphaRecord, use_case: UseCaseRecord | None, gate: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The gate input `[batch, tokens, *alpha]`: `gate` for gated slots, 1 elsewhere.

    Without a `gate` it is 1 for all, in one token that stands for every one.
    """
    sizes = (1, 1) if gate is None else gate.shape
    values = np.ones((*sizes, alpha.shape[-1]), np.float32)
    for index, slot in enumerate(use_case.slots if use_case is not None else ()):
        if slot.gated and gate is not None:
            own = (
                slice(index, index + 1)
                if alpha.layout == "slot"
                else slice(slot.start, slot.start + slot.rank)
            )
            values[:, :, own] = gate[:, :, None]
    return values
