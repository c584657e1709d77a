"""Shapes and axes of weights, as encodings per channel and per block need them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.branching.updatable_weights import Role, updatable_weights
from lora_quant.graph.records import BranchedGraph, Form, Storage

_VECTORS = frozenset({Role.H, Role.G, Role.C, Role.ROUTER_REST})


@dataclass(frozen=True)
class WeightLayout:
    """channel_axis: the axis of the outputs. block_axis: that of the inputs, None without one."""

    name: str
    shape: tuple[int, ...]
    channel_axis: int
    block_axis: int | None


def weight_layouts(base: BaseGraph) -> Iterator[WeightLayout]:
    """Weights of the base's linear nodes, and one-dimensional constants (biases, norms)."""
    linear = {
        found.weight: found
        for found in base.catalog.linears.values()
        if found.storage is not Storage.PACKED
    }
    for name, tensor in base.index.initializers.items():
        shape = tuple(tensor.dims)
        if name in linear:
            is_in_out = linear[name].weight_is_in_out
            yield WeightLayout(name, shape, int(is_in_out), int(not is_in_out))
        elif len(shape) == 1:
            yield WeightLayout(name, shape, 0, None)


def branch_layouts(branched: BranchedGraph) -> Iterator[WeightLayout]:
    """Every weight that was added: A, B, routers, vectors and E."""
    for weight in updatable_weights(branched):
        record, attach = weight.record, weight.attach
        is_conv = attach is not None and attach.linear.form is Form.CONV
        if weight.role in (Role.REPLACED, Role.SCALE):
            continue
        if weight.role in _VECTORS:
            # All other axes of a vector have size 1.
            yield WeightLayout(record.name, record.shape, int(is_conv), None)
        else:
            yield WeightLayout(record.name, record.shape, int(not is_conv), int(is_conv))
