"""The order of adapters in a use case, told by the per-channel grids of A.

    rows of A     tone 0.9 0.5    legal 0.2 0.3 0.1     largest magnitude of each
    scales of A   s.9  s.5        s.2   s.3   s.1       ->  tone, legal

A min-max grid of a row is as wide as the row. Where a scale was folded into A before, all rows of
one adapter are wider by one factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.lowered import Lowered
from lora_quant.encodings.branch_names import Role, find_branch_names
from lora_quant.encodings.files import read_encodings
from lora_quant.passes.exported.factors import names_in_graph

# A grid may be one step wider than the row, or, of calibrators that cut, a little narrower.
_TOLERANCE = 0.02


def proven_order(
    encodings: Path, orders: Iterable[tuple[str, ...]], adapters: Mapping[str, Adapter]
) -> tuple[str, ...] | None:
    """The one of `orders` that the grids of a module with all of the adapters allow, else None.

    Raises what reading the encodings and the weights raises.
    """
    file = read_encodings(encodings)
    scales = {
        branch.module: file.encodings[branch.tensor].scale
        for branch in find_branch_names(sorted(file.encodings)).values()
        if branch.role is Role.A
    }
    candidates = list(orders)
    shared = _shared_module([adapters[name] for name in candidates[0]], list(scales))
    if shared is None:
        return None
    module, names = shared
    scale = scales[module]
    rows = {}
    for one, name in zip(candidates[0], names, strict=True):
        lowered = adapters[one].lower(name)
        if not isinstance(lowered, Lowered):
            return None
        flat = np.abs(lowered.A.astype(np.float64)).reshape(lowered.rank, -1)
        rows[one] = flat.max(axis=1)
    if scale is None or scale.shape != (sum(map(len, rows.values())),):
        return None
    found = [order for order in candidates if _fits(scale, [rows[name] for name in order])]
    return found[0] if len(found) == 1 else None


def _shared_module(
    adapters: Sequence[Adapter], modules: Sequence[str]
) -> tuple[str, list[str]] | None:
    """A module that all adapters have, and what each calls it."""
    own = [names_in_graph(adapter, modules) for adapter in adapters]
    for module in modules:
        if all(module in names for names in own):
            return module, [names[module] for names in own]
    return None


def _fits(scale: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> bool:
    begin = 0
    for row in rows:
        if not row.all():
            return False
        ratio = scale[begin : begin + row.size] / row
        if ratio.max() - ratio.min() > _TOLERANCE * ratio.max():
            return False
        begin += row.size
    return True
