"""Which constants of the base graph hold a parameter that an adapter brings anew.

lm_head.weight        what the node /lm_head/MatMul reads, whatever it is called
model.norm.weight     a constant of that name, with more or fewer leading levels

Found by names alone, apart from the finder that the build uses, so that a parameter that was put
in another one's place is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.description import ParameterShape
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where, some
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.runtime.reference.base_view import BaseView, LinearView

_LINEAR = frozenset({"MatMul", "Gemm", "Conv", "Gather"})


@dataclass(frozen=True, eq=False)
class ParameterPlace:
    """A constant that holds a parameter, or its transpose."""

    tensor: Any
    transposed: bool

    @property
    def name(self) -> str:
        """The constant's name."""
        return str(self.tensor.name)

    def with_values(self, stored: Array, values: Array, rows: tuple[int, ...] | None) -> Array:
        """A copy of what is stored with a parameter put in, or its `rows`."""
        changed = stored.copy()
        oriented = changed.T if self.transposed else changed
        if rows is None:
            oriented[...] = values.reshape(oriented.shape)
        else:
            oriented[list(rows)] = values
        return changed


Places = Mapping[str, Mapping[str, tuple[ParameterPlace, ...]]]
"""Adapter -> parameter that it replaces -> the constants that hold it."""


def find_places(
    view: BaseView, adapters: Mapping[str, Adapter]
) -> tuple[Places, Mapping[str, str]]:
    """The constants that adapters replace, and by adapter why those of others cannot be told."""
    finder = None
    places: dict[str, dict[str, tuple[ParameterPlace, ...]]] = {name: {} for name in adapters}
    reasons: dict[str, str] = {}
    for name, adapter in adapters.items():
        if adapter.parameters:
            finder = finder or ParameterPlaces(view)
            try:
                places[name] = {p: finder.find(shape) for p, shape in adapter.parameters.items()}
            except VerificationError as error:
                reasons[name] = error.message
    return places, reasons


class ParameterPlaces:
    """Finds constants by the names of parameters."""

    def __init__(self, view: BaseView) -> None:
        self._view = view
        self._held: dict[str, dict[str, list[ParameterPlace]]] = {"weight": {}, "bias": {}}
        self._named: dict[str, dict[str, list[ParameterPlace]]] = {}
        for node in view.graph.nodes:
            if node.op in _LINEAR and view.is_constant(node.inputs[int(node.op != "Gather")]):
                self._add_node(view.linear(node.name or node.outputs[0].name))
        for tensor in view.graph.tensors().values():
            module, _, leaf = tensor.name.rpartition(".")
            if module and _is_root(tensor) and view.is_constant(tensor):
                named = self._named.setdefault(leaf, {})
                named.setdefault(module, []).append(ParameterPlace(tensor, transposed=False))

    def find(self, shape: ParameterShape) -> tuple[ParameterPlace, ...]:
        """Where a parameter is, and every tied copy of it if those are to change with it.

        Raises VerificationError unless exactly one constant has its name.
        """
        module, _, leaf = shape.parameter.rpartition(".")
        found: list[ParameterPlace] = []
        for known in (self._held.get(leaf, {}), self._named.get(leaf, {})):
            names = NameTable(known).find(module)
            found = [place for name in names for place in known[name]]
            if found:
                break
        distinct = list({place.name: place for place in found}.values())
        if len(distinct) != 1:
            listed = some([place.name for place in distinct]) if distinct else "none"
            raise VerificationError(
                f"the parameter {shape.parameter!r} cannot be told by name in the base graph: got "
                f"{listed}, expected one constant",
                where=Where(file=self._view.path, module=shape.parameter),
                hint="export the base graph with the module paths of the model",
            )
        place = self._oriented(distinct[0], shape)
        return (place, *self._ties(place)) if shape.with_ties else (place,)

    def _oriented(self, place: ParameterPlace, shape: ParameterShape) -> ParameterPlace:
        """The way round that the shapes tell, where they do."""
        stored = self._view.shape(place.tensor)
        wanted = shape.shape if shape.rows is None else (None, *shape.shape[1:])

        def fits(dims: tuple[int, ...]) -> bool:
            return len(dims) == len(wanted) and all(
                one in (None, other) for one, other in zip(wanted, dims, strict=True)
            )

        ways = [way for way in (False, True) if fits(stored[::-1] if way else stored)]
        if not ways:
            raise VerificationError(
                f"the parameter {shape.parameter!r} has the shape {list(shape.shape)}, the base's "
                f"has {list(stored)}",
                where=Where(file=self._view.path, tensor=place.name),
                hint="the pack was built from another base graph",
            )
        return ParameterPlace(place.tensor, place.transposed if len(ways) == 2 else ways[0])

    def _ties(self, place: ParameterPlace) -> Iterable[ParameterPlace]:
        """Constants with the same values, as exporters write what a model ties."""
        own = self._view.value(place.tensor)
        for tensor in self._view.graph.tensors().values():
            if tensor is place.tensor or not hasattr(tensor, "_values"):
                continue
            shape = self._view.shape(tensor)
            for turned in (False, True):
                if shape == (own.shape[::-1] if turned else own.shape) and len(shape) == 2:
                    other = self._view.value(tensor)
                    if np.array_equal(other.T if turned else other, own):
                        yield ParameterPlace(tensor, place.transposed != turned)
                        break

    def _add_node(self, linear: LinearView) -> None:
        name = linear.node.name or ""
        module = name.strip("/").rpartition("/")[0].replace("/", ".") or name
        weight, turns = _root(linear.source)
        if not module or len(self._view.shape(weight)) < 2:
            return
        # A MatMul reads a linear layer's W turned; a Gemm reads that of a Conv1D as it is.
        transposed = linear.op == "MatMul" and turns % 2 == 0
        self._hold("weight", module, ParameterPlace(weight, transposed))
        for tensor, _ in linear.biases:
            if self._view.is_constant(tensor):
                self._hold("bias", module, ParameterPlace(_root(tensor)[0], transposed=False))

    def _hold(self, leaf: str, module: str, place: ParameterPlace) -> None:
        self._held[leaf].setdefault(module, []).append(place)


def _is_root(tensor: Any) -> bool:
    """Whether a tensor's values are its own, or an exporter's copy of what it found equal."""
    if hasattr(tensor, "_values"):
        return True
    return bool(tensor.inputs) and tensor.inputs[0].op in ("Constant", "Identity")


def _root(tensor: Any) -> tuple[Any, int]:
    """The constant behind a tensor, and how many Transposes are between them."""
    turns = 0
    while not hasattr(tensor, "_values") and tensor.inputs[0].op != "Constant":
        turns += tensor.inputs[0].op == "Transpose"
        tensor = tensor.inputs[0].inputs[0]
    return tensor, turns
