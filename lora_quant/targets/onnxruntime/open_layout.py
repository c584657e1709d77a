"""What of a branched graph becomes overridable for ONNX Runtime, and how it is stored.

    A, B            by group of ranks; as floats, on the grids of the encodings, on grids that are
                    computed from the values, or in 4 bits: option lora_weights
    a, m, l         Q/DQ on the grids of the encodings, where A and B are on them
    everything else as floats

The default of a group has no ranks. Some operators of ONNX Runtime leave their output unwritten, or
a part of it, for an empty axis: those on codes, and convolutions. A group with either has one rank
of zeros, or as many as share a scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lora_quant.config.options import LoraWeights
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import ConfigError, Where
from lora_quant.graph.branching.points import rank_axis
from lora_quant.graph.opened.open_ranks import RankAxis
from lora_quant.graph.quantized.nbits import NBitsLayout
from lora_quant.graph.quantized.qdq_records import ActivationQdq
from lora_quant.graph.records import Branch, BranchedGraph, Form
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.rank_groups import RankGroup, rank_groups
from lora_quant.passes.updatable import UpdatableTensors
from lora_quant.targets.onnxruntime.weight_forms import (
    ComputedForm,
    EncodedForm,
    FloatForm,
    FourBitForm,
    RankedWeight,
    WeightForm,
)
from lora_quant.targets.quantized.grids import activation_grid, onnx_grid

_BLOCKS = (16, 32)
"""Values that share a scale in 4 bits: the fewer where there are no more."""


@dataclass(frozen=True, eq=False)
class OpenLayout:
    """`weights` and `forms` are those of A and B by name, `activations` those with Q/DQ.

    `axes` are those of `groups`, in the same order. An encoded form has the base's encoding; a use
    case's is put in its place when it is written.
    """

    groups: tuple[RankGroup, ...]
    axes: tuple[RankAxis, ...]
    weights: Mapping[str, RankedWeight]
    forms: Mapping[str, WeightForm]
    activations: Mapping[str, ActivationQdq]

    @property
    def has_encodings(self) -> bool:
        """Whether anything is stored on the grid of an encoding."""
        is_encoded = any(isinstance(form, EncodedForm) for form in self.forms.values())
        return is_encoded or bool(self.activations)


def plan_layout(compilation: Compilation) -> OpenLayout:
    """The layout of a compilation.

    Raises ConfigError for 4 bits at a convolution or an embedding, EncodingsError for an encoding
    that is no grid of ONNX.
    """
    branched: BranchedGraph = compilation.having("branched")
    branches = {branch.attach.name: branch for branch in branched.branches}
    asked = compilation.options.lora_weights
    # MatMulNBits has the sizes of its weight as attributes.
    found = rank_groups(compilation, fixed=branches if asked == "int4" else ())
    weights = {
        weight.record.name: weight
        for group in found
        for point in group.points
        for weight in _ranked(branches[point], group)
    }
    encodings: Mapping[str, Encoding] = {}
    if compilation.merged is not None and asked == "as-encoded":
        encodings = compilation.merged.base.encodings
    forms = {
        record.name: _form(compilation, branch, weights[record.name], encodings.get(record.name))
        for branch in branches.values()
        for record in (branch.a_weight, branch.b_weight)
    }
    activations = dict(_activations(compilation, branches.values(), encodings))
    return OpenLayout(
        groups=found,
        axes=tuple(
            RankAxis(
                group.number,
                group.points,
                group.width,
                _default_ranks([branches[p] for p in group.points], weights, forms, activations),
            )
            for group in found
        ),
        weights=weights,
        forms=forms,
        activations=activations,
    )


def _ranked(branch: Branch, group: RankGroup) -> Iterator[RankedWeight]:
    channels_of_a, channels_of_b = branch.channel_axes
    yield RankedWeight(branch.a_weight, rank_axis(branch.attach, is_a=True), channels_of_a, group)
    yield RankedWeight(branch.b_weight, rank_axis(branch.attach, is_a=False), channels_of_b, group)


def _activations(
    compilation: Compilation, branches: Iterable[Branch], encodings: Mapping[str, Encoding]
) -> Iterator[tuple[str, ActivationQdq]]:
    updatable: UpdatableTensors = compilation.having("updatable")
    for branch in branches:
        for tensor in (branch.a, branch.m, branch.l):
            if tensor not in encodings:
                continue
            where = Where(file=compilation.base.path, tensor=tensor)
            grid = activation_grid(encodings[tensor], where=where)
            if grid is not None:
                is_open = tensor in updatable.activations
                yield tensor, ActivationQdq(grid, is_open, branch.attach.linear.dtype)


def _form(
    compilation: Compilation, branch: Branch, weight: RankedWeight, encoding: Encoding | None
) -> WeightForm:
    if encoding is not None:
        return _encoded(compilation, weight, encoding)
    return _unencoded(compilation.options.lora_weights, branch, weight)


def _encoded(compilation: Compilation, weight: RankedWeight, encoding: Encoding) -> WeightForm:
    record = weight.record
    where = Where(file=compilation.base.path, tensor=record.name)
    encoding = weight.with_axes(encoding)
    grid = onnx_grid(encoding, record.shape, where=where)
    if grid is None:
        return FloatForm()
    updatable: UpdatableTensors = compilation.having("updatable")
    # A scale for each rank, or each block, has as many values as the use case has ranks.
    along = grid.axis is not None and (grid.axis == weight.axis or grid.block_size is not None)
    has_grid = record.name in updatable.weights or (along and weight.group.width is None)
    return EncodedForm(encoding, grid, has_grid, where)


def _unencoded(asked: LoraWeights, branch: Branch, weight: RankedWeight) -> WeightForm:
    if asked in ("int8", "int16"):
        return ComputedForm(asked, weight.channel_axis)
    if asked != "int4":
        return FloatForm()
    form = branch.attach.linear.form
    if form is not Form.MATMUL:
        raise ConfigError(
            f"lora_weights is 'int4', and an adapter is attached to a {form.value}, where ONNX "
            "Runtime has no operator for 4 bits",
            where=Where(field="lora_weights", module=branch.attach.name),
            hint="choose int8, or leave this module out of the adapter",
        )
    if weight.group.width is None:
        raise TypeError("ranks of 4 bits are fixed before their form is chosen")
    k, n = weight.shape(weight.group.width)
    return FourBitForm(NBitsLayout(k, n, next((b for b in _BLOCKS if k <= b), _BLOCKS[-1])))


def _default_ranks(
    branches: Iterable[Branch],
    weights: Mapping[str, RankedWeight],
    forms: Mapping[str, WeightForm],
    activations: Mapping[str, ActivationQdq],
) -> int:
    """How many ranks the defaults of a group's branches have."""
    ranks = 0
    for branch in branches:
        is_conv = branch.attach.linear.form is Form.CONV
        if is_conv or not activations.keys().isdisjoint((branch.a, branch.m, branch.l)):
            ranks = max(ranks, 1)
        for record in (branch.a_weight, branch.b_weight):
            form = forms[record.name]
            if isinstance(form, FloatForm):
                continue
            ranks = max(ranks, 1)
            if isinstance(form, EncodedForm) and form.grid.axis == weights[record.name].axis:
                ranks = math.lcm(ranks, form.grid.block_size or 1)
    return ranks
