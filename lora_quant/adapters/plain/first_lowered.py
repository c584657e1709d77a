"""Lowering an adapter to A and B alone, where that is costly: with the base, or approximated.

Ranks and biases of these modules are known only afterwards, so it is done before the first byte is
written. The results wait in a LoweredStore; all other modules are lowered when they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules, whole_weight
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape, Need
from lora_quant.adapters.lowered_store import LoweredStore
from lora_quant.adapters.maths.approximate import approximate, rank_for
from lora_quant.adapters.maths.dense_update import dense_update
from lora_quant.adapters.plain.plain_lora import plain_shape
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limits:
    """How an update without a low rank is approximated: rank, and largest error of a module."""

    rank: int
    max_error: float


@dataclass(eq=False)
class FirstLowered:
    """What came of it: module -> rank, and module -> rank and error for approximations.

    `has_bias`: whether any module of the adapter has a c, those that are lowered later included.
    """

    store: LoweredStore = field(default_factory=LoweredStore)
    ranks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, tuple[int, float]] = field(default_factory=dict)
    has_bias: bool = False


def lower_first(
    adapter: Adapter, base: BaseModules | None, limits: Limits | None, progress: Progress
) -> FirstLowered:
    """Lower what reads the base or is approximated; without `limits`, nothing is approximated.

    `progress` is told (what, done, total). Raises UnsupportedAdapterError for a module that needs a
    base and has none, be it for its sizes, AdapterError for an error above the limit, and what
    lowering raises.
    """
    lowering = FirstLowered()
    where = Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name)
    for number, (name, shape) in enumerate(adapter.shapes.items()):
        is_scaled = bool(shape.vectors & {"g", "h"})
        if not (is_scaled or shape.dense or shape.need is not Need.NOTHING):
            plain_shape(shape, shape.rank, base, where)
            lowering.has_bias |= "c" in shape.vectors
            continue
        progress(f"adapter {adapter.name}", number, len(adapter.shapes))
        lowered, error = _lowered(adapter, shape, base, limits)
        if error is not None:
            lowering.errors[name] = (lowered.rank, error)
        lowering.has_bias |= lowered.c is not None
        lowering.ranks[name] = lowered.rank
        lowering.store.put(name, lowered)
    return lowering


def _lowered(
    adapter: Adapter, shape: ModuleShape, base: BaseModules | None, limits: Limits | None
) -> tuple[Lowered, float | None]:
    """One module without g and h, and its error if that took an approximation."""
    is_scaled = bool(shape.vectors & {"g", "h"})
    if base is None and (is_scaled or shape.need is not Need.NOTHING):
        need = Need.WEIGHT if is_scaled else shape.need
        raise UnsupportedAdapterError(
            f"this module is lowered with the {need.value} of the base's module, and no base is "
            "given",
            where=Where(
                file=adapter.checkpoint.tensors.path, adapter=adapter.name, module=shape.module
            ),
            hint="name the base model with --base: an ONNX graph, a safetensors file or the folder "
            "of a model",
        )
    found = adapter.lower(shape.module, base)
    if isinstance(found, Lowered):
        if base is None or (found.g is None and found.h is None):
            return found, None
        found = _without_scaling(adapter, shape, found, base)
    if limits is None:
        raise RuntimeError(f"{shape.module} has no low rank, which was not told before")
    result = approximate(found, limits.rank)
    if result.error > limits.max_error:
        raise AdapterError(
            f"rank {limits.rank} leaves a relative error of {result.error:.3g}, more than "
            f"{limits.max_error:g}",
            where=Where(adapter=adapter.name, module=shape.module),
            hint=f"this module needs rank {rank_for(found, limits.max_error)}: give it with "
            "--approximate-rank, allow more with --max-error, or compile the adapter onto a graph "
            "with lora-quant build",
        )
    return result.lowered, result.error


def _without_scaling(
    adapter: Adapter, shape: ModuleShape, lowered: Lowered, base: BaseModules
) -> Dense:
    """The whole update of W and b; what the adapter replaces of them is what is scaled."""
    sizes = base.sizes(shape.module)
    if sizes.groups > 1 and lowered.rank:
        raise UnsupportedAdapterError(
            "the module is a grouped convolution with both LoRA and a scaling, whose update is not "
            "one of its weight",
            where=Where(adapter=adapter.name, module=shape.module),
            hint="compile it onto a graph with lora-quant build",
        )
    weight = _replaced(adapter, f"{shape.module}.weight")
    if weight is None:
        weight = whole_weight(base, shape.module)
    elif sizes.is_embedding:
        weight = weight.T
    bias = _replaced(adapter, f"{shape.module}.bias")
    return dense_update(lowered, weight, base.bias(shape.module) if bias is None else bias, sizes)


def _replaced(adapter: Adapter, parameter: str) -> NDArray[np.float64] | None:
    shape = adapter.parameters.get(parameter)
    if shape is None or shape.rows is not None:
        return None
    return adapter.parameter(parameter).astype(np.float64)
