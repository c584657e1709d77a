"""Shapes and axes of weights, as encodings per channel and per block need them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_quant.graph.base import BaseGraph
from lora_quant.graph.records import BranchedGraph, Form


@dataclass(frozen=True)
class WeightLayout:
    """channel_axis: the axis of the outputs. block_axis: that of the inputs, None without one."""

    name: str
    shape: tuple[int, ...]
    channel_axis: int
    block_axis: int | None


def weight_layouts(base: BaseGraph) -> Iterator[WeightLayout]:
    """Weights of the base's linear nodes, and one-dimensional constants (biases, norms)."""
    linear = {found.weight: found for found in base.catalog.linears.values()}
    for name, tensor in base.index.initializers.items():
        shape = tuple(tensor.dims)
        if name in linear:
            is_in_out = linear[name].weight_is_in_out
            yield WeightLayout(name, shape, int(is_in_out), int(not is_in_out))
        elif len(shape) == 1:
            yield WeightLayout(name, shape, 0, None)


def branch_layouts(branched: BranchedGraph) -> Iterator[WeightLayout]:
    """A, B and E."""
    for branch in branched.branches:
        channels = 0 if branch.attach.linear.form is Form.CONV else 1
        for record in (branch.a_weight, branch.b_weight):
            yield WeightLayout(record.name, record.shape, channels, 1 - channels)
    expansion = branched.scale.expansion
    if expansion is not None:
        yield WeightLayout(expansion.name, expansion.shape, 1, 0)
