"""The graph of the `onnxruntime` target: LoRA tensors as inputs with defaults that do nothing.

    alpha [slots], E_n, A and B or what they are stored as, vectors, routers, replaced parameters,
    and scale and zero point of a, m, l where a use case may change them

With the defaults it computes the base, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_quant.config.manifest_records import OverridableRecord
from lora_quant.errors import Where
from lora_quant.graph.branching.updatable_weights import Role, UpdatableWeight, updatable_weights
from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.opened.open_ranks import RankAxis, open_ranks
from lora_quant.graph.opened.open_scalars import scalar_grids
from lora_quant.graph.quantized.nbits import NBitsLayout, use_nbits
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import OverridableInput, WeightQdq
from lora_quant.graph.records import BranchedGraph, TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.onnxruntime.open_layout import OpenLayout
from lora_quant.targets.onnxruntime.weight_forms import (
    ComputedForm,
    EncodedForm,
    FloatForm,
    FourBitForm,
)
from lora_quant.targets.quantized.grids import located
from lora_quant.targets.quantized.quantized_values import take_grid_ranks

ALPHA = "alpha"
ACTIVATION = "activation"

_ZERO = frozenset({Role.C, Role.ROUTER, Role.ROUTER_EXPANSION})


@dataclass(frozen=True, eq=False)
class OverridableGraph:
    """The graph, what of it an adapter may replace, and E_n by the number of the rank axis."""

    graph: OpenGraph
    inputs: tuple[OverridableRecord, ...]
    expansions: dict[int, TensorRecord]


def overridable_graph(compilation: Compilation, layout: OpenLayout) -> OverridableGraph:
    """Make it from a copy of the branched graph.

    Raises GraphError if a name is taken, or if the opset cannot express a grid.
    """
    branched: BranchedGraph = compilation.having("branched")
    graph = OpenGraph(compilation.base)
    expansions = dict(open_ranks(graph, branched, layout.axes))
    roles = {record.name: Role.EXPANSION.value for record in expansions.values()}
    if branched.scale is not None:
        roles[branched.scale.alpha.name] = ALPHA
    axes = {axis.number: axis for axis in layout.axes}
    for weight in updatable_weights(branched):
        if weight.role is Role.EXPANSION:
            continue  # the E_n are in its place
        roles[weight.record.name] = weight.role.value
        _float_input(graph, layout, axes, weight)
    graph.apply()
    where = Where(file=compilation.base.path)
    coded = insert_qdq(
        graph.proto,
        activations=layout.activations,
        weights=_coded_weights(layout, axes),
        where=where,
    )
    scalar_grids(graph, branched.branches)
    packed = use_nbits(graph.proto, _four_bit_weights(layout), where=where)
    roles.update(dict.fromkeys(layout.activations, ACTIVATION))
    plain = (OverridableInput(record, record.name, "values") for record in graph.inputs)
    inputs = tuple(_record(made, roles) for made in (*plain, *coded, *packed))
    return OverridableGraph(graph, inputs, expansions)


def _float_input(
    graph: OpenGraph,
    layout: OpenLayout,
    axes: dict[int, RankAxis],
    weight: UpdatableWeight,
) -> None:
    """Make a weight that is stored as floats an input; others follow with their codes."""
    record = weight.record
    ranked = layout.weights.get(record.name)
    if ranked is None:
        # Ones have their values by now, and so have the parameters of the base.
        if weight.role in _ZERO:
            graph.zero(record)
        graph.overridable(record.name, record.dtype, record.shape)
        return
    if not isinstance(layout.forms[record.name], FloatForm):
        return
    axis = axes[ranked.group.number]
    graph.zero(TensorRecord(record.name, ranked.shape(axis.default_size), record.dtype))
    graph.overridable(record.name, record.dtype, ranked.dims(axis.size))


def _coded_weights(layout: OpenLayout, axes: dict[int, RankAxis]) -> dict[str, WeightQdq]:
    found: dict[str, WeightQdq] = {}
    for name, form in layout.forms.items():
        weight = layout.weights[name]
        axis = axes[weight.group.number]
        shape = weight.shape(axis.default_size)
        if isinstance(form, EncodedForm):
            with located(form.where):
                grid = take_grid_ranks(form.grid, weight.axis, range(axis.default_size))
            has_grid = form.has_grid
        elif isinstance(form, ComputedForm):
            grid, has_grid = form.grid(shape[form.channel_axis]), True
        else:
            continue
        found[name] = WeightQdq(
            grid,
            overridable_values=True,
            overridable_grid=has_grid,
            shape=shape,
            dims=weight.dims(axis.size),
        )
    return found


def _four_bit_weights(layout: OpenLayout) -> dict[str, NBitsLayout]:
    return {
        name: form.layout for name, form in layout.forms.items() if isinstance(form, FourBitForm)
    }


def _record(made: OverridableInput, roles: dict[str, str]) -> OverridableRecord:
    return OverridableRecord(
        name=made.record.name,
        dtype=made.record.dtype,
        shape=made.record.shape,
        role=roles[made.of],
        part=made.part,
        of=None if made.part == "values" else made.of,
    )
