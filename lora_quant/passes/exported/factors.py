"""The factors of adapters as graphs hold them, and whether two graphs hold the same.

The first graph that holds an adapter gives its factors; every other one is held against them. An
adapter with weights of its own has its factors from the start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.spilled_tensors import SpilledTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.errors import UnsupportedAdapterError, Where
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.passes.exported.descriptions import Setting
from lora_quant.passes.exported.readings import Law

Array = NDArray[Any]


class Factors(NamedTuple):
    """A `[rank, in, *kernel]` and B `[out, rank]`, of a grouped B `[out, rank / groups]`."""

    a: Array
    b: Array


class KnownFactors(Protocol):
    """The factors of one adapter at every module that it adapts."""

    @property
    def source(self) -> str:
        """Where they are from, as a message says it."""

    @property
    def modules(self) -> Collection[str]:
        """Its modules, by their names in the graphs."""

    def factors(self, module: str, like: Factors) -> Factors:
        """Those of one module, in the types and shapes of `like` where that loses nothing."""


@dataclass(frozen=True)
class GraphFactors:
    """What the graph of a use case held, put aside."""

    use_case: str
    tensors: SpilledTensors
    names: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """See KnownFactors."""
        return f"use case {self.use_case!r}"

    @property
    def modules(self) -> Collection[str]:
        """See KnownFactors."""
        return self.names.keys()

    def put(self, module: str, factors: Factors, *, is_embedding: bool) -> None:
        """Keep the factors of one module under PEFT's names."""
        a, b = factors
        if is_embedding:
            names = (f"{module}.lora_embedding_A", f"{module}.lora_embedding_B")
        else:
            names = (f"{module}.lora_A.weight", f"{module}.lora_B.weight")
            if a.ndim > 2 and b.shape[1] == a.shape[0] and set(a.shape[2:]) == {1}:
                a = a.reshape(a.shape[:2])  # a linear layer, or what is the same
            b = b.reshape(*b.shape[:2], *[1] * (a.ndim - 2))
        self.tensors.put(names[0], a)
        self.tensors.put(names[1], b)
        self.names[module] = names

    def factors(self, module: str, like: Factors) -> Factors:
        """See KnownFactors."""
        a, b = (self.tensors.read(name) for name in self.names[module])
        return Factors(_shaped(a, like.a), _shaped(b, like.b))


@dataclass(frozen=True)
class CheckpointFactors:
    """What an adapter's own files hold, rounded to the type of the graph."""

    adapter: Adapter
    names: Mapping[str, str]

    @property
    def source(self) -> str:
        """See KnownFactors."""
        return f"its checkpoint {str(self.adapter.checkpoint.tensors.path)!r}"

    @property
    def modules(self) -> Collection[str]:
        """See KnownFactors."""
        return self.names.keys()

    def factors(self, module: str, like: Factors) -> Factors:
        """See KnownFactors."""
        lowered = self.adapter.lower(self.names[module])
        if not isinstance(lowered, Lowered):
            raise _beyond_graphs(self.adapter, self.names[module])
        with np.errstate(over="ignore"):
            a, b = lowered.A.astype(like.a.dtype), lowered.B.astype(like.b.dtype)
        return Factors(_shaped(a, like.a), _shaped(b, like.b))


@dataclass(frozen=True)
class WeightsDescribed:
    """An adapter with weights of its own: its lowering rule describes it."""

    adapter: Adapter

    def __post_init__(self) -> None:
        """Refuse kinds that a branch of A, scale and B does not hold."""
        found = self.adapter.description
        for module, shape in self.adapter.shapes.items():
            if _is_more(shape):
                raise _beyond_graphs(self.adapter, module)
        if found.parameters or found.prompt is not None:
            raise _beyond_graphs(self.adapter, next(iter(found.parameters), None))

    @property
    def where(self) -> Where:
        """The configuration of the checkpoint."""
        return Where(file=self.adapter.checkpoint.config.file, adapter=self.adapter.name)

    @property
    def files(self) -> tuple[Path, ...]:
        """See Described."""
        return (self.adapter.checkpoint.config.file,)

    def names(self, modules: Sequence[str]) -> dict[str, str]:
        """Module of a graph -> module of the checkpoint."""
        return names_in_graph(self.adapter, modules)

    def settings(self, modules: Sequence[str]) -> Mapping[str, Setting]:
        """See Described."""
        shapes = self.adapter.shapes
        return {
            name: Setting(shapes[module].rank, {Law.LORA: shapes[module].scale})
            for name, module in self.names(modules).items()
        }

    def config(self, modules: Sequence[str], law: Law) -> PeftConfig:
        """See Described."""
        del modules, law
        return self.adapter.checkpoint.config


def names_in_graph(adapter: Adapter, modules: Sequence[str]) -> dict[str, str]:
    """Module of a graph -> module of the adapter's files, where just one of `modules` can be it."""
    table = NameTable(modules)
    found = {module: table.find(module) for module in adapter.shapes}
    return {names[0]: module for module, names in found.items() if len(names) == 1}


def same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(np.array_equal(_bits(one), _bits(other)))


def distance(one: Array, other: Array) -> float | None:
    """The largest absolute difference; None between arrays of other shapes."""
    if one.shape != other.shape or not one.size:
        return None
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64))))


def _bits(values: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _shaped(values: Array, like: Array) -> Array:
    """The values in the shape of `like` if only axes of size one differ."""
    thin = [size for size in values.shape if size != 1] == [s for s in like.shape if s != 1]
    return values.reshape(like.shape) if thin else values


def _is_more(shape: ModuleShape) -> bool:
    return bool(
        shape.dense
        or shape.vectors
        or shape.gated
        or shape.experts
        or not shape.rank
        or shape.need is not Need.NOTHING
    )


def _beyond_graphs(adapter: Adapter, module: str | None) -> UnsupportedAdapterError:
    kind = adapter.checkpoint.config.peft_type
    return UnsupportedAdapterError(
        f"adapter {adapter.name!r}, of kind {kind}, has more than A, scale and B, and cannot be "
        "held against the graphs of its use cases",
        where=Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name, module=module),
        hint="name the base graph as model_name of the use cases with this adapter: its branches "
        "are made from its weights",
    )
