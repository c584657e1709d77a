"""Strengths at run time: absolute, per adapter; what is not named keeps its compiled strength.

use case both: tone 1.0, legal 0.6      both + tone=0.5   ->   alpha [0.5, 0.6, 0]
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lora_quant.config.manifest_records import AlphaRecord, SlotRecord, UseCaseRecord
from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import ConfigError, Where, did_you_mean

_PARTS = {
    "g": "the vector g, which scales outputs",
    "h": "the vector h, which scales inputs",
    "c": "a trained bias",
    "parameters": "replaced parameters",
    "prompt": "a soft prompt",
}


def strengths_of(use_case: UseCaseRecord, config: UseCaseRunConfig) -> dict[str, float]:
    """Adapter -> strength, for every slot of the use case.

    Raises ConfigError for an adapter that is not in the use case, and for a strength other than the
    compiled one if parts of the adapter would not follow it.
    """
    slots = {slot.adapter: slot for slot in use_case.slots}
    strengths = {name: slot.alpha for name, slot in slots.items()}
    for one in config.adapters:
        slot = slots.get(one.name)
        if slot is None:
            raise ConfigError(
                f"the use case {use_case.name!r} has no adapter {one.name!r}",
                where=Where(use_case=use_case.name, adapter=one.name),
                hint=did_you_mean(one.name, slots),
            )
        if one.alpha != slot.alpha and slot.beyond_alpha:
            raise _fixed(use_case, slot, one.alpha)
        strengths[one.name] = one.alpha
    return strengths


def strength_values(
    alpha: AlphaRecord, use_case: UseCaseRecord | None, strengths: Mapping[str, float]
) -> Array:
    """The alpha input of a graph, in its shape and dtype; zeros for no use case.

    slot layout: one strength per slot. rank layout: alpha_i * scale_i on the ranks of slot i.
    Raises ConfigError for a strength that is infinite in the dtype.
    """
    values = np.zeros(alpha.shape, _dtype(alpha.dtype))
    largest = float(np.finfo(values.dtype).max)
    flat = values.reshape(-1)
    for index, slot in enumerate(use_case.slots if use_case is not None else ()):
        strength = strengths[slot.adapter]
        if abs(strength) * max(1.0, abs(slot.scale)) > largest:
            raise ConfigError(
                f"the strength {strength:g} of adapter {slot.adapter!r} is beyond what the graph "
                f"can hold, {largest:g}",
                where=Where(adapter=slot.adapter),
                hint="1 is as trained; few adapters stay useful above 2",
            )
        if alpha.layout == "slot":
            flat[index] = strength
        else:
            flat[slot.start : slot.start + slot.rank] = strength * slot.scale
    return values


def _fixed(use_case: UseCaseRecord, slot: SlotRecord, asked: float) -> ConfigError:
    parts = ", ".join(_PARTS[part] for part in slot.beyond_alpha)
    return ConfigError(
        f"the strength of adapter {slot.adapter!r} cannot change at run time: got {asked:g}, "
        f"expected {slot.alpha:g} as compiled, since alpha does not reach a part of it ({parts})",
        where=Where(use_case=use_case.name, adapter=slot.adapter),
        hint="build a use case with the strength that you want; to switch the adapter off, switch "
        "to a use case without it",
    )


def _dtype(name: str) -> np.dtype[np.floating]:
    return np.dtype(np.float16 if name == "float16" else np.float32)
