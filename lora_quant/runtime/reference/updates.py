"""What a use case changes in the base, computed from the adapters' own files.

Adapters act one after the other, in the order of the use case; each is lowered over the base as the
adapter itself has it, and a strength multiplies what it adds:

    M <- g * M * h + alpha * B diag(s) A        t <- g * t + alpha * c

from M = W and t = b. Then W' = M, and d = t - b. Gates and routers have no W': their updates are
token paths, which a later g multiplies as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.lowered import Dense, Lowered
from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.reference.base_reader import BaseReader
from lora_quant.runtime.reference.base_view import BaseView, LinearView, spread
from lora_quant.runtime.reference.parameter_places import Places
from lora_quant.runtime.reference.reference import BaseChange, NodeChange
from lora_quant.runtime.reference.sites import Site, Sites
from lora_quant.runtime.reference.token_paths import PathSpec, PathValues

Matrix = NDArray[np.float64]
Substitute = Callable[["Part", Matrix, Matrix], Matrix]
"""(part, its exact delta, what later adapters multiply it by `[out]`) -> the delta to take."""


@dataclass(frozen=True)
class Part:
    """One module of one adapter in a use case, with its strength."""

    adapter: str
    module: str
    site: Site
    alpha: float


class Updates:
    """Makes the change of every use case; nothing is kept between two of them."""

    def __init__(
        self,
        view: BaseView,
        adapters: Mapping[str, Adapter],
        sites: Sites,
        places: Places,
        mapping: Path | None,
    ) -> None:
        self._view = view
        self._adapters = adapters
        self._sites = sites
        self._places = places
        self._mapping = mapping

    @property
    def nodes(self) -> frozenset[str]:
        """Every node that some adapter changes."""
        return frozenset(site.node for sites in self._sites.values() for site in sites.values())

    @property
    def constants(self) -> tuple[Any, ...]:
        """Every constant that some adapter replaces, once."""
        found = [
            place for known in self._places.values() for group in known.values() for place in group
        ]
        return tuple({place.name: place.tensor for place in found}.values())

    def input_name(self, node: str) -> str:
        """The tensor that a node reads."""
        return str(self._view.linear(node).node.inputs[0].name)

    def paths(self) -> tuple[PathSpec, ...]:
        """The updates that depend on the token."""
        return tuple(
            PathSpec(self._sites[name][module].node, name, module, shape.experts)
            for name, adapter in self._adapters.items()
            for module, shape in adapter.shapes.items()
            if shape.gated or shape.experts
        )

    def change(
        self,
        strengths: Mapping[str, float],
        *,
        gate: NDArray[np.float32] | None = None,
        gates_on: bool = True,
        substitute: Substitute | None = None,
    ) -> BaseChange:
        """What adapters change at these strengths, in their order.

        Gated adapters are on or off, or multiplied per token by `gate` `[batch, tokens]`.
        `substitute` gives the deltas of modules without a low rank.
        """
        constants = self._constants(strengths)
        bases = {name: self._base(name) for name in strengths}
        parts: dict[str, list[Part]] = defaultdict(list)
        for name, alpha in strengths.items():
            for module, site in self._sites[name].items():
                parts[site.node].append(Part(name, module, site, alpha))
        nodes: dict[str, NodeChange] = {}
        paths: dict[PathSpec, PathValues] = {}
        for node, own in parts.items():
            linear = self._view.linear(node)
            stack = _Stack(linear, constants)
            acting = [
                (part, self._adapters[part.adapter].lower(part.module, bases[part.adapter]))
                for part in own
                if gates_on or not self._shape(part).gated
            ]
            for number, (part, lowered) in enumerate(acting):
                later = _later(part, acting[number + 1 :])
                gated = gate is not None and self._shape(part).gated
                if isinstance(lowered, Lowered) and (gated or lowered.router is not None):
                    spec = PathSpec(node, part.adapter, part.module, self._shape(part).experts)
                    paths[spec] = stack.path(part, lowered, later)
                    stack.scale(part, lowered)
                else:
                    stack.add(part, lowered, later, substitute)
            nodes[node] = stack.result()
        return BaseChange(nodes, constants, paths, gate)

    def _base(self, adapter: str) -> BaseModules:
        return BaseReader(
            self._view,
            self._adapters[adapter],
            self._sites[adapter],
            self._constants([adapter]),
            self._mapping,
        )

    def _constants(self, adapters: Iterable[str]) -> dict[str, Array]:
        changed: dict[str, Array] = {}
        for name in adapters:
            for parameter, group in self._places[name].items():
                adapter = self._adapters[name]
                values, shape = adapter.parameter(parameter), adapter.parameters[parameter]
                for place in group:
                    stored = self._view.value(place.tensor, changed)
                    changed[place.name] = place.with_values(stored, values, shape.rows)
        return changed

    def _shape(self, part: Part) -> Any:
        return self._adapters[part.adapter].shapes[part.module]


class _Stack:
    """M and t of one node."""

    def __init__(self, linear: LinearView, constants: Mapping[str, Array]) -> None:
        self._linear = linear
        self._constants = constants
        self._weight: Matrix = linear.ungrouped(constants).astype(np.float64)
        self._added: Matrix = np.zeros(len(self._weight))

    def add(
        self, part: Part, lowered: Lowered | Dense, later: Matrix, substitute: Substitute | None
    ) -> None:
        """Put one module on top of what is there."""
        self.scale(part, lowered)
        if isinstance(lowered, Lowered):
            if lowered.rank == 0:
                return
            delta = _low_rank_delta(lowered)
        else:
            delta = lowered.delta.astype(np.float64)
            if substitute is not None:
                delta = substitute(part, delta, later).reshape(delta.shape)
        own = self._weight[part.site.rows]
        wide = delta.reshape(len(own), -1)
        if wide.size != own.size:
            shape = (len(own), own.shape[1] // self._linear.groups, *own.shape[2:])
            wide = spread(delta.reshape(shape), self._linear.groups)
        own += part.alpha * wide.reshape(own.shape)

    def scale(self, part: Part, lowered: Lowered | Dense) -> None:
        """Multiply by g and h, and add c."""
        rows = part.site.rows
        if isinstance(lowered, Lowered):
            if lowered.g is not None:
                g = lowered.g.astype(np.float64)
                self._weight[rows] *= g.reshape(-1, *(1 for _ in self._weight.shape[1:]))
                bias = self._linear.bias(self._constants)[rows]
                self._added[rows] = g * (self._added[rows] + bias) - bias
            if lowered.h is not None:
                h = lowered.h.astype(np.float64)
                self._weight *= h.reshape(-1, *(1 for _ in self._weight.shape[2:]))
        if lowered.c is not None:
            self._added[rows] += part.alpha * self._linear.gain * lowered.c.astype(np.float64)

    def path(self, part: Part, lowered: Lowered, later: Matrix) -> PathValues:
        """The low rank of one module, apart from W'."""
        factors = part.alpha * self._linear.gain * lowered.s
        left = np.zeros((len(self._weight), lowered.rank))
        left[part.site.rows] = later[:, None] * lowered.B * factors
        right = lowered.A.astype(np.float64).reshape(lowered.rank, -1)
        return PathValues(right, left, lowered.router)

    def result(self) -> NodeChange:
        """W' and d, in the type of the node."""
        dtype = self._linear.dtype
        return NodeChange(self._weight.astype(dtype), self._added.astype(dtype))


def _low_rank_delta(lowered: Lowered) -> Matrix:
    """B diag(s) A; B `[out, rank / groups]` of a grouped convolution stands for its blocks."""
    left = lowered.B.astype(np.float64)
    if left.shape[1] != lowered.rank:
        left = spread(left, lowered.rank // left.shape[1])
    delta: Matrix = (left * lowered.s) @ lowered.A.astype(np.float64).reshape(lowered.rank, -1)
    return delta


def _later(part: Part, after: Iterable[tuple[Part, Lowered | Dense]]) -> Matrix:
    """What the adapters that act after a part multiply its outputs by, `[out]`."""
    gain = np.ones(part.site.size)
    for other, lowered in after:
        if other.site == part.site and isinstance(lowered, Lowered) and lowered.g is not None:
            gain = gain * lowered.g.astype(np.float64)
    return gain
