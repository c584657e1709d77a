"""What the adapter file of one use case holds, in one order, one attach point in memory at a time.

    alpha                            the strengths that the use case was compiled with
    of each attach point it changes  A, B, routers, vectors; scale and zero point of a, m, l
    E_n                              of each group of ranks that it fills
    parameters of the base           those that its adapters replace

Whatever is not in the file stays at its default, which does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.findings import Finding
from lora_quant.graph.branching.updatable_weights import Role, UpdatableWeight, updatable_weights
from lora_quant.graph.quantized.qdq_records import scale_name, zero_point_name
from lora_quant.graph.records import Branch, BranchedGraph, TensorRecord, Vector
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.contributions import active_vectors
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.replacements import Replacement, replaced_values
from lora_quant.passes.slots import SlotTable
from lora_quant.passes.weight_values import PointValues, shared_weights, use_case_weights
from lora_quant.targets.onnxruntime.balanced_ranks import balance_ranks
from lora_quant.targets.onnxruntime.open_layout import OpenLayout
from lora_quant.targets.onnxruntime.weight_forms import (
    ComputedForm,
    EncodedForm,
    FourBitForm,
    UseCaseWeight,
)
from lora_quant.targets.quantized.grids import activation_grid

Values = NDArray[Any]
Named = tuple[str, Values]
_VECTORS = {Role.H: Vector.H, Role.G: Vector.G, Role.C: Vector.C}


@dataclass(frozen=True)
class _Part:
    """Some tensors of the file; `values` gives them from the padded weights of their point."""

    records: tuple[TensorRecord, ...]
    values: Callable[[Mapping[str, Values]], Iterator[Named]]


class AdapterParameters:
    """The tensors of one use case: `records` at once, `values` when they are written.

    `expansions` are the E_n of the graph. `findings` is what its encodings give rise to.
    """

    def __init__(
        self,
        compilation: Compilation,
        layout: OpenLayout,
        expansions: Mapping[int, TensorRecord],
        use_case: str,
    ) -> None:
        self._compilation = compilation
        self._layout = layout
        self._expansions = expansions
        self._use_case = use_case
        self._slots: SlotTable = compilation.having("slots")
        self._branched: BranchedGraph = compilation.having("branched")
        self._where = Where(use_case=use_case)
        self.findings: tuple[Finding, ...] = ()
        self._encodings: Mapping[str, Encoding] = {}
        if layout.has_encodings:
            self._encodings, self.findings = _encodings(compilation, use_case)
        self._first = (self._alpha(),) if self._branched.scale is not None else ()
        self._points = self._of_points()
        self._last = (*self._of_expansions(), *self._of_replaced())

    @property
    def records(self) -> tuple[TensorRecord, ...]:
        """Names, shapes and dtypes in the order of `values`."""
        inner = (part for parts in self._points.values() for part in parts)
        return tuple(r for part in (*self._first, *inner, *self._last) for r in part.records)

    def values(self) -> Iterator[Named]:
        """Every tensor by name; AdapterError for values that the graph's dtype cannot hold."""
        for part in self._first:
            yield from part.values({})
        if self._points:
            for point in use_case_weights(self._compilation, self._use_case):
                parts = self._points.get(point.point.name, ())
                values = self._balanced(point) if parts else {}
                for part in parts:
                    yield from part.values(values)
        for part in self._last:
            yield from part.values({})

    def _alpha(self) -> _Part:
        scale = self._branched.scale
        name = "" if scale is None else scale.alpha.name
        values = np.array(self._slots.alphas(self._use_case), np.float32)
        return _ready(name, values)

    def _of_points(self) -> dict[str, list[_Part]]:
        """By attach point, in graph order, the parts that the use case changes."""
        vectors = active_vectors(self._compilation, self._use_case)
        filled = {
            point
            for group in self._layout.groups
            if self._use_case in group.fills
            for point in group.points
        }
        branches = {branch.attach.name: branch for branch in self._branched.branches}
        found: dict[str, list[_Part]] = {point.name: [] for point in self._branched.points}
        for weight in updatable_weights(self._branched):
            if weight.attach is None:
                continue
            point = weight.attach.name
            vector = _VECTORS.get(weight.role)
            if (point in filled) if vector is None else ((point, vector) in vectors):
                found[point].append(self._weight(weight))
        for point in filled:
            found[point] += self._activations(branches[point])
        return {point: parts for point, parts in found.items() if parts}

    def _weight(self, weight: UpdatableWeight) -> _Part:
        record, name = weight.record, weight.record.name
        ranked = self._layout.weights.get(name)
        if ranked is None:
            return _Part((record,), lambda padded: iter([(name, padded[name])]))
        form = self._layout.forms[name]
        if isinstance(form, EncodedForm):
            where = replace(self._where, tensor=name)
            form = replace(form, encoding=ranked.with_axes(self._encodings[name]), where=where)
        stored, own = form, UseCaseWeight(ranked, self._use_case)
        return _Part(stored.records(own), lambda padded: stored.values(own, padded[name]))

    def _balanced(self, point: PointValues) -> Mapping[str, Values]:
        """Values of a point, balanced where grids follow from them; a router reads a as it is."""
        branch = point.branch
        if branch is None or branch.router is not None:
            return point.values
        a, b = branch.a_weight.name, branch.b_weight.name
        if not isinstance(self._layout.forms[a], ComputedForm | FourBitForm):
            return point.values
        axes = (self._layout.weights[a].axis, self._layout.weights[b].axis)
        balanced = balance_ranks(point.values[a], point.values[b], *axes)
        return {**point.values, a: balanced[0], b: balanced[1]}

    def _activations(self, branch: Branch) -> Iterator[_Part]:
        for tensor in (branch.a, branch.m, branch.l):
            asked = self._layout.activations.get(tensor)
            if asked is None or not asked.overridable:
                continue
            where = replace(self._where, tensor=tensor)
            grid = activation_grid(self._encodings[tensor], where=where)
            if grid is not None:
                yield _ready(scale_name(tensor), grid.scale)
                yield _ready(zero_point_name(tensor), grid.zero_point)

    def _of_expansions(self) -> Iterator[_Part]:
        slots = self._slots.use_cases[self._use_case]
        for group in self._layout.groups:
            if self._use_case in group.fills:
                name = self._expansions[group.number].name
                matrix = group.expansion(self._use_case, slots, self._slots.slot_count)
                yield _ready(name, matrix)

    def _of_replaced(self) -> Iterator[_Part]:
        adapters = self._compilation.having("adapters")
        own = {slot.adapter for slot in self._slots.use_cases[self._use_case]}
        owners = {
            one.target.weight.name: one
            for one in self._compilation.replacements
            if one.adapter in own
        }
        for target in self._branched.replaced:
            owner = owners.get(target.weight.name)
            if owner is None:
                continue

            def values(_: Mapping[str, Values], owner: Replacement = owner) -> Iterator[Named]:
                base, adapter = self._compilation.base, adapters[owner.adapter]
                read = replaced_values(base, owner.target, adapter, owner.shape)
                yield owner.target.weight.name, read

            yield _Part((target.weight,), values)


def _ready(name: str, values: Values) -> _Part:
    dtype = values.dtype.name
    record = TensorRecord(name, values.shape, dtype)
    return _Part((record,), lambda _: iter([(name, values)]))


def _encodings(
    compilation: Compilation, use_case: str
) -> tuple[Mapping[str, Encoding], tuple[Finding, ...]]:
    """The complete encodings of a use case; a first walk over its weights finds their ranges."""
    ranges = WeightRanges()
    for point in use_case_weights(compilation, use_case):
        ranges.observe(point)
    for record, values in shared_weights(compilation, use_case):
        ranges.take(record.name, values)
    merged, findings = compilation.having("merged").for_use_case(use_case, ranges)
    return merged.encodings, findings
